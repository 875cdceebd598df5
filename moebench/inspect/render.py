"""Inspections and tasks in a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from moebench.catalogue import METRICS
from moebench.errors import ConfigError
from moebench.inspect import Inspection, Routed
from moebench.metrics.clustering import domain_tree, shares
from moebench.records import printable

BLOCKS = " ▁▂▃▄▅▆▇█"
TALLEST = 2.0  # times even, of a full block
MOST_ROWS = 64  # experts in one table
GROUPS = ("valid", "train", "load", "ep", "specialization", "router", "forces")  # first come these
MOST_SETTLED = 9  # steps of which it is said how far experts are settled


def show(found: Inspection, console: Console, layer: int | None = None) -> None:
    """Print an inspection: metrics, loads of all layers, the experts of one, domains as a tree."""
    listed = _chosen(len(found.counts), layer)[-1]
    console.print(Text(printable(found.name), style="bold"))
    for line in found.about:
        console.print(Text(printable(line)))
    console.print(_metrics(found))
    _loads(found, console)
    console.print(_experts(found, listed))
    if len(found.domains) > 1:
        console.print(_tree(found))
    if len(found.settled) > 1:
        console.print(
            Text("\nexperts that are those of the last evaluation, by step", style="bold")
        )
        steps = list(found.settled)
        some = np.linspace(0, len(steps) - 1, min(len(steps), MOST_SETTLED)).round().astype(int)
        console.print(
            Text("  ".join(f"{steps[at]}: {found.settled[steps[at]]:.0%}" for at in some))
        )


def _metrics(found: Inspection) -> Table:
    """A row a metric, under the group that its name begins with."""
    table = Table(box=None, pad_edge=False)
    table.add_column("metric", no_wrap=True)
    for name in ("value", "random"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("(random: if tokens chose at random)", style="dim")
    groups: dict[str, dict[str, str]] = {group: {} for group in GROUPS}
    for key, metric in METRICS.items():
        if metric.inspected and isinstance(found.metrics.get(key), int | float):
            groups.setdefault(key.partition("/")[0], {})[key] = metric.inspected
    for group, metrics in groups.items():
        if metrics:
            table.add_row(Text(f"{group}/", style="bold"))
        for key, meaning in metrics.items():
            random = found.random.get(key)
            baseline = "" if random is None else _number(random)
            name = key.partition("/")[2]
            table.add_row(f"  {name}", _number(found.metrics[key]), baseline, meaning)
    return table


def _number(value: float) -> str:
    if abs(value) < 1e-6:
        return "0"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _loads(found: Inspection, console: Console) -> None:
    """A line a layer: a bar for each expert, full at twice even."""
    mean = shares(found.counts).mean(1)  # domains weigh the same
    times = mean * mean.shape[1]
    console.print(
        Text(
            "\nloads: a bar an expert, half high where even, full from twice; . is dead",
            style="bold",
        )
    )
    for layer, each in enumerate(times):
        bars = "".join("." if one == 0 else _bar(one) for one in each)
        dead = int((found.counts[layer].sum(0) == 0).sum())
        line = f"layer {layer:<3} MaxVio {each.max() - 1:5.2f}  dead {dead:<3} "
        console.print(Text(line).append(bars, style="cyan"), overflow="fold")


def _bar(times: float) -> str:
    height = min(len(BLOCKS) - 1, max(1, round(times / TALLEST * (len(BLOCKS) - 1))))
    return BLOCKS[height]


def _experts(found: Inspection, layer: int) -> Table:
    """The experts of a layer, the fullest first, each with the domains that its tokens are of."""
    share = shares(found.counts)[layer]  # [domains, experts]
    load = share.mean(0) * share.shape[1]
    order = np.argsort(-load, kind="stable")
    table = Table(box=None, pad_edge=False)
    number = share.shape[1]
    some = f", {MOST_ROWS} of {number}" if number > MOST_ROWS else ""
    table.title = f"\nlayer {layer}: experts, the fullest first{some}"
    table.title_justify, table.title_style = "left", "bold"
    table.add_column("expert", justify="right")
    table.add_column("load", justify="right")
    table.add_column("", no_wrap=True)
    table.add_column(f"its domains (even: {1 / len(share):.0%} each)", overflow="fold")
    for expert in order[:MOST_ROWS]:
        total = share[:, expert].sum()
        if not total:
            table.add_row(str(expert), "0", "", Text("dead: no token chose it", style="red"))
            continue
        of_domain = share[:, expert] / total
        best = np.argsort(-of_domain, kind="stable")[:3]
        names = ", ".join(f"{printable(found.domains[d])} {of_domain[d]:.0%}" for d in best)
        table.add_row(
            str(expert),
            f"{load[expert]:.2f}",
            Text("█" * max(1, round(3 * min(load[expert], 4))), style="cyan"),
            Text(names),
        )
    unseen = [str(expert) for expert in order[MOST_ROWS:] if not load[expert]]
    if unseen:
        table.add_row("", "0", "", Text(f"dead, too: {', '.join(unseen)}", style="red"))
    return table


def _tree(found: Inspection) -> Tree:
    """Domains that use experts alike lie together."""
    _, merges = domain_tree(found.counts)
    number = len(found.domains)

    def grow(into: Tree, at: int) -> None:
        if at < number:
            into.add(Text(printable(found.domains[at])))
            return
        one, other, distance, _ = merges[at - number]
        branch = into.add(Text(f"{distance:.2f}", style="dim"))
        grow(branch, int(one))
        grow(branch, int(other))

    title = "\ndomains by the experts they use (0: the same, 1: none in common)"
    tree = Tree(Text(title, style="bold"))
    grow(tree, number + len(merges) - 1)
    return tree


def show_text(found: Routed, console: Console, layer: int | None = None) -> None:
    """Print a text once a layer, each token in the colour of its first expert; then a table.

    Without colours, the table alone. Of one layer, if it is given.
    """
    layers = _chosen(len(found.experts), layer)
    if console.color_system is not None:
        for each in layers:
            line = Text().append(f"layer {each}  ", style="dim")
            for token, experts in zip(found.tokens, found.experts[each], strict=True):
                line.append(printable(token), style=_colour(experts[0], found.num_experts))
            console.print(line, overflow="fold")
        legend = Text().append("experts  ", style="dim")
        for expert in range(found.num_experts):
            legend.append(f" {expert} ", style=_colour(expert, found.num_experts))
        console.print(legend, overflow="fold")
        console.print()
    console.print(Text("the experts of each token, the likeliest first", style="bold"))
    tokens = [repr(token)[1:-1].replace(" ", "␣") for token in found.tokens]
    widest = max(len(" ".join(map(str, each))) for layer in found.experts for each in layer)
    room = console.width - max(map(cell_len, tokens))
    together = max(1, room // (2 + max(len("layer 99"), widest)))
    for first in range(0, len(layers), together):
        table = Table(box=None, pad_edge=False)
        table.add_column("token")
        for each in layers[first : first + together]:
            table.add_column(f"layer {each}", justify="right")
        for at, token in enumerate(tokens):
            cells = [
                Text(" ".join(map(str, experts)), style=_colour(experts[0], found.num_experts))
                for experts in (
                    found.experts[each][at] for each in layers[first : first + together]
                )
            ]
            table.add_row(Text(token), *cells)
        console.print(table)


def _chosen(layers: int, layer: int | None) -> list[int]:
    """All layers, or the one that is asked for."""
    if layer is None:
        return list(range(layers))
    if not 0 <= layer < layers:
        raise ConfigError(f"--layer={layer}: must be between 0 and {layers - 1}")
    return [layer]


def _colour(expert: int, number: int) -> str:
    """Black on a hue of its own."""
    hue = 6 * expert / number
    fall = 1 - abs(hue % 2 - 1)
    rgb = [(1, fall, 0), (fall, 1, 0), (0, 1, fall), (0, fall, 1), (fall, 0, 1), (1, 0, fall)]
    # pale, so that black text is read on it
    red, green, blue = (round(115 + 140 * part) for part in rgb[int(hue)])
    return f"black on rgb({red},{green},{blue})"


def show_tasks(found: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    """Print accuracies with their 95 % intervals, a column a run."""
    for task in dict.fromkeys(name for tasks in found.values() for name in tasks):
        results = [tasks[task] for tasks in found.values()]
        part = "phenomenon" if "phenomenon" in results[0] else "domain"
        chance = results[0]["all"]["chance"]
        table = Table(box=None, pad_edge=False)
        title = f"{task}: accuracy and its 95 % interval, in percent (chance: {100 * chance:g})"
        table.add_column(part)
        table.add_column("n", justify="right")
        for run in found:
            table.add_column(Text(printable(run.rsplit("/", 1)[-1])), justify="right")
        for name in dict.fromkeys(name for one in results for name in one[part]):
            _accuracies(table, name, [one[part].get(name) for one in results])
        _accuracies(table, "all", [one["all"] for one in results])
        console.print(Text(title, style="bold"), table)


def _accuracies(table: Table, name: str, each: Sequence[Mapping[str, Any] | None]) -> None:
    """Add a row: of each run its accuracy, or nothing where it has none of the name."""
    numbers = {str(one["n"]) for one in each if one}
    cells = [
        "{:.1f} ({:.1f}–{:.1f})".format(*(100 * one[key] for key in ("accuracy", "low", "high")))
        if one
        else ""
        for one in each
    ]
    table.add_row(Text(printable(name)), numbers.pop() if len(numbers) == 1 else "differs", *cells)

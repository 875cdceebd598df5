"""Inspections and task results as text in a terminal."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from moebench.inspect.exchange import Exchange
    from moebench.inspect.own_counts import Counted
    from moebench.metrics.dispersion import Dispersion

BLOCKS = " ▁▂▃▄▅▆▇█"
TALLEST = 2.0  # the load of a full block, in multiples of even
MAX_ROWS = 64  # experts in one table
GROUPS = ("valid", "train", "load", "ep", "specialization", "router", "forces")  # then any others
MAX_STEPS = 9  # steps at which the settled experts are printed


def show(inspection: Inspection, console: Console, layer: int | None = None) -> None:
    """Print metrics, loads of all layers, the experts of one layer, and domains as a tree.

    Args:
        layer: whose experts to print; None for the last.

    Raises:
        ConfigError: if there is no such layer.
    """
    listed = _chosen(len(inspection.counts), layer)[-1]
    console.print(Text(printable(inspection.name), style="bold"))
    for line in inspection.about:
        console.print(Text(printable(line)))
    console.print(_metrics(inspection))
    _print_loads(inspection, console)
    console.print(_experts(inspection, listed))
    if len(inspection.domains) > 1:
        console.print(_tree(inspection))
    settled = inspection.settled
    if len(settled) > 1:
        console.print(
            Text("\nexperts that are those of the last evaluation, by step", style="bold")
        )
        steps = list(settled)
        some = np.linspace(0, len(steps) - 1, min(len(steps), MAX_STEPS)).round().astype(int)
        console.print(Text("  ".join(f"{steps[at]}: {settled[steps[at]]:.0%}" for at in some)))


def show_counts(counted: "Counted", console: Console, layer: int | None = None) -> None:
    """Print how much micro-batches differ beside chance, their cost, then what `show` prints."""
    show(counted.inspection, console, layer)
    found = counted.dispersion
    console.print(Text("\nhow much f varies between micro-batches of a step", style="bold"))
    console.print(Text(f"{_ratio(found)} times as much as by chance", style="bold"))
    console.print(
        Text(
            "chance: the same tokens dealt to the micro-batches at random. Near 1, the scope of "
            "the balance loss will hardly matter."
        )
    )
    if counted.within_domains:
        console.print(Text(f"between those of one domain: {_ratio(counted.within_domains)}"))
    layers = zip(counted.inspection.layers, found.by_layer, strict=True)
    console.print(Text("by layer: " + ", ".join(f"{name}: {r:.2f}" for name, r in layers)))
    console.print(
        Text(
            f"with P = f, the balance loss over micro-batches exceeds that over steps by "
            f"{found.excess:.3g}, of which chance is {found.chance:.3g}"
        )
    )
    if cost := counted.cost:
        console.print(
            Text(
                f"\nexpert layers of a step on {cost.ranks} ranks: {cost.ms:.4g} ms, "
                f"{cost.even_ms:.4g} ms if loads were even ({cost.ms / cost.even_ms - 1:+.1%})",
                style="bold",
            )
        )


def _ratio(found: "Dispersion") -> str:
    return f"{found.ratio:.2f} ({found.low:.2f} to {found.high:.2f}, 95 %)"


def _metrics(inspection: Inspection) -> Table:
    """A row per metric that the catalogue says to inspect, under the group of its name."""
    table = Table(box=None, pad_edge=False)
    table.add_column("metric", no_wrap=True)
    for name in ("value", "random"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("(random: if tokens chose at random)", style="dim")
    groups: dict[str, dict[str, str]] = {group: {} for group in GROUPS}
    for key, metric in METRICS.items():
        if metric.inspected and isinstance(inspection.metrics.get(key), int | float):
            groups.setdefault(key.partition("/")[0], {})[key] = metric.inspected
    for group, metrics in groups.items():
        if metrics:
            table.add_row(Text(f"{group}/", style="bold"))
        for key, meaning in metrics.items():
            random = inspection.random.get(key)
            baseline = "" if random is None else _number(random)
            name = key.partition("/")[2]
            table.add_row(f"  {name}", _number(inspection.metrics[key]), baseline, meaning)
    return table


def _number(value: float) -> str:
    if abs(value) < 1e-6:
        return "0"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _print_loads(inspection: Inspection, console: Console) -> None:
    """Print a line per layer, with a bar per expert that is full at twice the even load."""
    mean = shares(inspection.counts).mean(1)  # domains weigh the same
    times = mean * mean.shape[1]
    console.print(
        Text(
            "\nloads: a bar an expert, half high where even, full from twice; . is dead",
            style="bold",
        )
    )
    for layer, loads in enumerate(times):
        bars = "".join("." if load == 0 else _bar(load) for load in loads)
        dead = int((inspection.counts[layer].sum(0) == 0).sum())
        line = f"layer {layer:<3} MaxVio {loads.max() - 1:5.2f}  dead {dead:<3} "
        console.print(Text(line).append(bars, style="cyan"), overflow="fold")


def _bar(times: float) -> str:
    height = min(len(BLOCKS) - 1, max(1, round(times / TALLEST * (len(BLOCKS) - 1))))
    return BLOCKS[height]


def _experts(inspection: Inspection, layer: int) -> Table:
    """The experts of a layer, the fullest first, each with the domains of its tokens."""
    share = shares(inspection.counts)[layer]  # [domains, experts]
    number = share.shape[1]
    load = share.mean(0) * number
    order = np.argsort(-load, kind="stable")
    table = Table(box=None, pad_edge=False)
    some = f", {MAX_ROWS} of {number}" if number > MAX_ROWS else ""
    table.title = f"\nlayer {layer}: experts, the fullest first{some}"
    table.title_justify, table.title_style = "left", "bold"
    table.add_column("expert", justify="right")
    table.add_column("load", justify="right")
    table.add_column("", no_wrap=True)
    table.add_column(f"its domains (even: {1 / len(share):.0%} each)", overflow="fold")
    for expert in order[:MAX_ROWS]:
        total = share[:, expert].sum()
        if not total:
            table.add_row(str(expert), "0", "", Text("dead: no token chose it", style="red"))
            continue
        of_domain = share[:, expert] / total
        best = np.argsort(-of_domain, kind="stable")[:3]
        names = ", ".join(f"{printable(inspection.domains[d])} {of_domain[d]:.0%}" for d in best)
        table.add_row(
            str(expert),
            f"{load[expert]:.2f}",
            Text("█" * max(1, round(3 * min(load[expert], 4))), style="cyan"),
            Text(names),
        )
    unseen = [str(expert) for expert in order[MAX_ROWS:] if not load[expert]]
    if unseen:
        table.add_row("", "0", "", Text(f"dead, too: {', '.join(unseen)}", style="red"))
    return table


def _tree(inspection: Inspection) -> Tree:
    """The domains, clustered by the experts that they use."""
    merges = domain_tree(inspection.counts)
    number = len(inspection.domains)

    def grow(into: Tree, at: int) -> None:
        if at < number:
            into.add(Text(printable(inspection.domains[at])))
            return
        one, other, distance, _ = merges[at - number]
        branch = into.add(Text(f"{distance:.2f}", style="dim"))
        grow(branch, int(one))
        grow(branch, int(other))

    title = "\ndomains by the experts they use (0: the same, 1: none in common)"
    tree = Tree(Text(title, style="bold"))
    grow(tree, number + len(merges) - 1)
    return tree


def show_exchange(found: "Exchange", console: Console) -> None:
    """Print the nats of a run with its own experts and with those of another run."""
    what = "validation" if found.text == "valid" else "probe"
    console.print(Text(printable(f"{found.run}, step {found.step}"), style="bold"))
    console.print(Text(f"nats a token on the {found.sequences} sequences of the {what}"))
    error = "" if found.error is None else f" ± {found.error:.4f}"
    table = Table(box=None, pad_edge=False)
    table.add_column("experts of")
    table.add_column("nats", justify="right")
    for whose, value in (
        ("this run", f"{found.own:.4f}"),
        (printable(found.other), f"{found.replayed:.4f}"),
        ("difference", f"{found.difference:+.4f}{error}"),
    ):
        table.add_row(Text(whose), value)
    console.print(table)
    console.print(Text(f"{found.same:.1%} of assignments are those of both runs"))


def show_text(routed: Routed, console: Console, layer: int | None = None) -> None:
    """Print a table of each token's experts; with colours, first the text once per layer.

    In the text, the colour of a token is that of its first expert.

    Args:
        layer: the only layer to print; None for all.

    Raises:
        ConfigError: if there is no such layer.
    """
    layers = _chosen(len(routed.experts), layer)
    if console.color_system is not None:
        _print_coloured(routed, layers, console)
    console.print(Text("the experts of each token, the likeliest first", style="bold"))
    tokens = [repr(token)[1:-1].replace(" ", "␣") for token in routed.tokens]
    widest = max(len(_numbers(experts)) for of_layer in routed.experts for experts in of_layer)
    room = console.width - max(map(cell_len, tokens))
    per_table = max(1, room // (2 + max(len("layer 99"), widest)))
    for first in range(0, len(layers), per_table):
        shown = layers[first : first + per_table]
        table = Table(box=None, pad_edge=False)
        table.add_column("token")
        for number in shown:
            table.add_column(f"layer {number}", justify="right")
        for at, token in enumerate(tokens):
            experts = [routed.experts[number][at] for number in shown]
            cells = [
                Text(_numbers(chosen), _colour(chosen[0], routed.num_experts)) for chosen in experts
            ]
            table.add_row(Text(token), *cells)
        console.print(table)


def _print_coloured(routed: Routed, layers: Sequence[int], console: Console) -> None:
    """Print the text once per layer in the colours of its experts, then all colours."""
    for layer in layers:
        line = Text().append(f"layer {layer}  ", style="dim")
        for token, experts in zip(routed.tokens, routed.experts[layer], strict=True):
            line.append(printable(token), style=_colour(experts[0], routed.num_experts))
        console.print(line, overflow="fold")
    legend = Text().append("experts  ", style="dim")
    for expert in range(routed.num_experts):
        legend.append(f" {expert} ", style=_colour(expert, routed.num_experts))
    console.print(legend, overflow="fold")
    console.print()


def _numbers(experts: Sequence[int]) -> str:
    return " ".join(map(str, experts))


def _chosen(layers: int, layer: int | None) -> list[int]:
    """All layers, or only the given one."""
    if layer is None:
        return list(range(layers))
    if not 0 <= layer < layers:
        raise ConfigError(f"--layer={layer}: must be between 0 and {layers - 1}")
    return [layer]


def _colour(expert: int, number: int) -> str:
    """Black on the hue of one of some experts."""
    hue = 6 * expert / number
    fall = 1 - abs(hue % 2 - 1)
    rgb = [(1, fall, 0), (fall, 1, 0), (0, 1, fall), (0, fall, 1), (fall, 0, 1), (1, 0, fall)]
    # pale, so that black text is legible
    red, green, blue = (round(115 + 140 * part) for part in rgb[int(hue)])
    return f"black on rgb({red},{green},{blue})"


def show_tasks(results_of: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    """Print accuracies with their 95 % intervals, a column per run.

    Args:
        results_of: run -> task -> its results.
    """
    for task in dict.fromkeys(name for tasks in results_of.values() for name in tasks):
        results = [tasks[task] for tasks in results_of.values()]
        part = "phenomenon" if "phenomenon" in results[0] else "domain"
        chance = results[0]["all"]["chance"]
        table = Table(box=None, pad_edge=False)
        title = f"{task}: accuracy and its 95 % interval, in percent (chance: {100 * chance:g})"
        table.add_column(part)
        table.add_column("n", justify="right")
        for run in results_of:
            table.add_column(Text(printable(run.rsplit("/", 1)[-1])), justify="right")
        for name in dict.fromkeys(name for result in results for name in result[part]):
            _add_accuracies(table, name, [result[part].get(name) for result in results])
        _add_accuracies(table, "all", [result["all"] for result in results])
        console.print(Text(title, style="bold"), table)


def _add_accuracies(table: Table, name: str, runs: Sequence[Mapping[str, Any] | None]) -> None:
    """Add a row with the accuracy of each run; a run that lacks this part has an empty cell."""
    numbers = {str(run["n"]) for run in runs if run}
    cells = [
        "{:.1f} ({:.1f}–{:.1f})".format(*(100 * run[key] for key in ("accuracy", "low", "high")))
        if run
        else ""
        for run in runs
    ]
    table.add_row(Text(printable(name)), numbers.pop() if len(numbers) == 1 else "differs", *cells)

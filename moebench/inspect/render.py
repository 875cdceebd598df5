"""Inspections and tasks in a terminal."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from moebench.errors import ConfigError
from moebench.inspect import Inspection, Routed
from moebench.metrics.clustering import domain_tree
from moebench.records import printable

BLOCKS = " ▁▂▃▄▅▆▇█"
TALLEST = 2.0  # times even, of a full block
MOST_ROWS = 64  # experts in one table
SHOWN = {  # metric -> what it says
    "valid/ppl": "validation perplexity",
    "valid/bits_per_byte": "bits a byte",
    "train/balance_loss_micro": "balance loss, micro-batches (even: 1)",
    "train/balance_loss_global": "balance loss, global (even: 1)",
    "load/max_vio_micro": "MaxVio, micro-batch (even: 0)",
    "load/max_vio_batch": "MaxVio, step (even: 0)",
    "load/max_vio_global": "MaxVio, validation (even: 0)",
    "load/cv": "CV, step (even: 0)",
    "load/gini": "Gini, step (even: 0)",
    "load/entropy": "exp(H) / E, step (even: 1)",
    "load/dead_experts": "dead experts, step",
    "load/dead_experts_global": "dead experts, validation",
    "load/drop_rate": "dropped at capacity 1.25, micro-batch",
    "ep/slowdown": "slowdown on virtual ranks (even: 1)",
    "ep/slowdown_greedy": "... experts placed by load",
    "ep/slowdown_redundant": "... and the fullest copied",
    "specialization/domain": "domain bits of an expert",
    "specialization/domain_given_token": "... given the token",
    "specialization/largest_share": "largest share of a domain's tokens",
    "specialization/vocabulary": "tokens at their entry's favourite expert",
    "specialization/coactivation": "met with the commonest partner",
    "router/topk_mass": "probability of the chosen experts",
    "router/saturation": "experts settled at half of the steps",
    "forces/cross_entropy": "router gradient, cross-entropy",
    "forces/balance": "router gradient, balance",
    "forces/cosine": "cosine of the two",
}


def show(found: Inspection, console: Console, layer: int | None = None) -> None:
    """Print an inspection: metrics, loads of all layers, the experts of one, domains as a tree."""
    layers = len(found.counts)
    if layer is not None and not 0 <= layer < layers:
        raise ConfigError(f"--layer={layer}: must be between 0 and {layers - 1}")
    console.print(Text(printable(found.name), style="bold"))
    for line in found.about:
        console.print(Text(printable(line)))
    console.print(_metrics(found))
    _loads(found, console)
    console.print(_experts(found, layers - 1 if layer is None else layer))
    if len(found.domains) > 1:
        console.print(_tree(found))
    if len(found.settled) > 1:
        each = "  ".join(f"{step}: {share:.0%}" for step, share in found.settled.items())
        console.print(Text(f"\nexperts that are those of the last evaluation, by step  {each}"))


def _metrics(found: Inspection) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    table.add_column("metric", style="dim")
    for name in ("value", "random"):
        table.add_column(name, justify="right")
    for key, meaning in SHOWN.items():
        value = found.metrics.get(key)
        if isinstance(value, int | float):
            random = found.random.get(key)
            table.add_row(meaning, key, _number(value), "" if random is None else _number(random))
    return table


def _number(value: float) -> str:
    if abs(value) < 1e-6:
        return "0"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _loads(found: Inspection, console: Console) -> None:
    """A line a layer: a bar for each expert, full at twice even."""
    shares = found.shares().mean(1)  # domains weigh the same
    times = shares * shares.shape[1]
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
    shares = found.shares()[layer]  # [domains, experts]
    load = shares.mean(0) * shares.shape[1]
    table = Table(box=None, pad_edge=False)
    table.title = f"\nlayer {layer}: experts, the fullest first"
    table.title_justify, table.title_style = "left", "bold"
    table.add_column("expert", justify="right")
    table.add_column("load", justify="right")
    table.add_column("", no_wrap=True)
    table.add_column(f"its domains (even: {1 / len(shares):.0%} each)", overflow="fold")
    for expert in np.argsort(-load, kind="stable")[:MOST_ROWS]:
        total = shares[:, expert].sum()
        if not total:
            table.add_row(str(expert), "0", "", Text("dead: no token chose it", style="red"))
            continue
        of_domain = shares[:, expert] / total
        best = np.argsort(-of_domain, kind="stable")[:3]
        names = ", ".join(f"{printable(found.domains[d])} {of_domain[d]:.0%}" for d in best)
        table.add_row(
            str(expert),
            f"{load[expert]:.2f}",
            Text("█" * max(1, round(6 * min(load[expert], 4))), style="cyan"),
            Text(names),
        )
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


def show_text(found: Routed, console: Console) -> None:
    """Print a text once a layer, each token in the colour of its first expert; then a table."""
    for layer, each in enumerate(found.experts):
        line = Text(f"layer {layer}  ", style="dim")
        for token, experts in zip(found.tokens, each, strict=True):
            line.append(printable(token), style=_colour(experts[0], found.num_experts))
        console.print(line, overflow="fold")
    legend = Text("experts  ", style="dim")
    for expert in range(found.num_experts):
        legend.append(f" {expert} ", style=_colour(expert, found.num_experts))
    console.print(legend, overflow="fold")
    table = Table(box=None, pad_edge=False)
    table.add_column("token")
    for layer in range(len(found.experts)):
        table.add_column(f"layer {layer}", justify="right")
    for at, token in enumerate(found.tokens):
        cells = [
            Text(" ".join(map(str, each[at])), style=_colour(each[at][0], found.num_experts))
            for each in found.experts
        ]
        table.add_row(Text(repr(token)[1:-1]), *cells)
    console.print(table)


def _colour(expert: int, number: int) -> str:
    """Black on a hue of its own."""
    hue = 6 * expert / number
    fall = 1 - abs(hue % 2 - 1)
    rgb = [(1, fall, 0), (fall, 1, 0), (0, 1, fall), (0, fall, 1), (fall, 0, 1), (1, 0, fall)]
    # pale, so that black text is read on it
    red, green, blue = (round(115 + 140 * part) for part in rgb[int(hue)])
    return f"black on rgb({red},{green},{blue})"


def show_tasks(found: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    """Print accuracies, a column a run, with the half of their 95 % intervals."""
    for task in dict.fromkeys(name for tasks in found.values() for name in tasks):
        results = [tasks[task] for tasks in found.values()]
        part = "phenomenon" if "phenomenon" in results[0] else "domain"
        chance = results[0]["all"]["chance"]
        table = Table(box=None, pad_edge=False)
        table.title = f"{task}: accuracy, percent (chance: {100 * chance:g})"
        table.title_justify = "left"
        table.add_column(part)
        table.add_column("n", justify="right")
        for run in found:
            table.add_column(Text(printable(run.rsplit("/", 1)[-1])), justify="right")
        for name in (*results[0][part], None):
            each = [one["all"] if name is None else one[part][name] for one in results]
            cells = [f"{100 * a['accuracy']:.1f} ±{50 * (a['high'] - a['low']):.1f}" for a in each]
            table.add_row(Text(printable(name or "all")), str(each[0]["n"]), *cells)
        console.print(table)

"""The report as blocks: headings, grids of numbers, sentences.

What shows after few steps comes first: load and specialisation, then perplexity, the paper's
findings, and in words what the numbers can and cannot tell.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from moebench.records import printable
from moebench.report.infer.arms import Arm, Described, Table
from moebench.report.infer.frontier import WEIGHT, frontier
from moebench.report.infer.statistics import FEWEST_SEEDS
from moebench.report.paper.findings import PAPER, Verdict
from moebench.report.read.run import PRIMARY, SCOPES
from moebench.report.show import sentences as words
from moebench.report.show.cells import (
    Cell,
    count,
    ends,
    estimate_cell,
    interval,
    interval_of_any_size,
    mean,
    mean_of_any_size,
    median_of,
    percent_of_perplexity,
    perplexity,
    span,
)


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Sentences:
    """A list under a title, one sentence an item."""

    title: str
    items: Sequence[str]


@dataclass(frozen=True)
class Grid:
    """Rows under headers; the first column names the row, all others are numbers."""

    title: str
    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[Cell]]


Block = Heading | Sentences | Grid


@dataclass(frozen=True)
class Shown:
    """What a reader asked for.

    Attributes:
        metrics: names; these alone, in one grid. Empty for the usual grids.
        per_domain: whether to add the nats of each domain.
    """

    metrics: tuple[str, ...] = ()
    per_domain: bool = False


def blocks(table: Table, shown: Shown = Shown()) -> list[Block]:
    """All that is said about one table, in order."""
    differs = ", ".join(
        printable(f"{key} at its default" if value is None else f"{key}={value}")
        for key, value in table.differs.items()
    )
    found: list[Block] = [Heading(f"Runs with {differs}")] if differs else []
    if shown.metrics:
        found.append(_metrics_grid(table, shown.metrics))
    else:
        found += [_load_grid(table), _perplexity_grid(table)]
        if table.primary != PRIMARY:
            found.append(_primary_grid(table))
    if shown.per_domain:
        found.append(_domain_grid(table))
    found += [*_cost_grid(table), *_frontier_grid(table), *_findings_grid(table)]
    found += [
        Sentences("What the numbers can and cannot tell", words.verdicts(table)),
        Sentences("How far these runs reach", words.limits(table)),
        Sentences("Load and specialisation in words", words.load(table)),
        Sentences("Caution", words.cautions(table)),
    ]
    return [
        _without_empty_columns(each) if isinstance(each, Grid) else each
        for each in found
        if not isinstance(each, Sentences) or each.items
    ]


def _without_empty_columns(grid: Grid) -> Grid:
    """What no arm has, as a paired t below three seeds, takes no room."""
    kept = [i for i in range(len(grid.headers)) if i == 0 or any(any(row[i]) for row in grid.rows)]
    rows = [[row[i] for i in kept] for row in grid.rows]
    return replace(grid, headers=[grid.headers[i] for i in kept], rows=rows)


def _seeds(arm: Arm) -> Cell:
    """How many are finished, and below, what became of the others."""
    return str(len(arm.seeds)), ", ".join(f"{n} {state}" for state, n in arm.unfinished.items())


TESTED = "95 % for all arms together, adjusted p"
MORE_BITS = (
    ("at\nstart", "specialization/domain_start", "at start: before it was trained"),
    (
        "given\ntoken",
        "specialization/domain_given_token",
        "given token: beyond what the token tells",
    ),
)


def _load_grid(table: Table) -> Grid:
    more = [each for each in MORE_BITS if _has(table, each[1])]
    columns = [
        *((f"MaxVio\n{scope}", f"load/max_vio_{scope}", 2) for scope in SCOPES),
        ("load\nentropy", "load/entropy", 3),
        ("dead\nshare", "load/dead_experts", 3),
        ("domain\nbits", "specialization/domain", 3),
        *((header, name, 3) for header, name, _ in more),
    ]
    rows = [
        [
            (arm.name, ""),
            _seeds(arm),
            (count(arm.sequences), ""),
            (count(arm.group_tokens), ""),
            *(mean(arm.metrics.get(name), digits) for _, name, digits in columns),
        ]
        for arm in table.arms
    ]
    if table.random:
        random = [(span(table.random.get(scope)), "") for scope in SCOPES]
        rest = [("", "")] * (len(columns) - len(SCOPES))
        rows.append([("random routing", ""), *[("", "")] * 3, *random, *rest])
    return Grid(
        title="Load and specialisation",
        caption="Means over seeds, ± half of a 95 % interval where there are 3. Group: whose "
        "counts the balance loss averages. MaxVio: largest load over the mean, less 1, in a "
        "micro-batch, a step and the validation set; 0 is even. Load entropy: 1 is even. Domain "
        "bits: what an expert tells of the domain"
        + "".join(f"; {meaning}" for *_, meaning in more)
        + ".",
        headers=["arm", "seeds", "group\nseqs", "group\ntokens", *(each[0] for each in columns)],
        rows=rows,
    )


def _has(table: Table, metric: str) -> bool:
    return any(metric in arm.metrics for arm in table.arms)


def _metrics_grid(table: Table, metrics: Sequence[str]) -> Grid:
    """An arm a row; or a metric a row if they are more than the arms, as a list is read down."""
    metrics = [name for name in metrics if _has(table, name)]
    arms = [
        (arm.name, _seeds(arm), [_value_and_difference(arm.metrics.get(name)) for name in metrics])
        for arm in table.arms
    ]
    if len(metrics) <= len(arms):
        headers = ["arm", "seeds", *(each for name in metrics for each in (name, "difference"))]
        rows = [
            [(arm, ""), seeds, *(cell for pair in pairs for cell in pair)]
            for arm, seeds, pairs in arms
        ]
    else:
        headers = ["metric", *(each for arm, *_ in arms for each in (arm, "difference"))]
        rows = [[("seeds", ""), *(cell for _, seeds, _ in arms for cell in (seeds, ("", "")))]]
        rows += [
            [(name, ""), *(cell for *_, pairs in arms for cell in pairs[at])]
            for at, name in enumerate(metrics)
        ]
    return Grid(
        title=f"Metrics; differences are to {table.baseline}",
        caption="Means over seeds, ± half of a 95 % interval where there are 3; paired "
        "differences with 95 % intervals, for all arms together if of "
        f"{table.primary}, else for one arm alone.",
        headers=headers,
        rows=rows,
    )


def _value_and_difference(described: Described | None) -> tuple[Cell, Cell]:
    value = described and described.difference
    difference = "" if value is None else f"{value:+.3g}"
    reach = interval_of_any_size(*ends(described)) if described else ""
    return mean_of_any_size(described), (difference, reach)


def _domain_grid(table: Table) -> Grid:
    prefix = f"{PRIMARY}/"
    names = dict.fromkeys(
        name for arm in table.arms for name in arm.metrics if name.startswith(prefix)
    )
    rows = []
    for name in names:
        found = [arm.metrics.get(name) for arm in table.arms]
        low = [
            "" if each is None or each.difference is None else f"{each.difference:+.4f}"
            for each in found
        ]
        values = ["-" if e is None or e.mean is None else f"{e.mean:.4f}" for e in found]
        rows.append([(name.removeprefix(prefix), ""), *zip(values, low, strict=True)])
    return Grid(
        title="Nats a token of each domain",
        caption=f"Means over seeds; below them the mean paired difference to {table.baseline}. "
        "Nothing here is tested.",
        headers=["domain", *(arm.name for arm in table.arms)],
        rows=rows,
    )


def _cost_grid(table: Table) -> list[Grid]:
    """Virtual and timed cost, where there is any."""
    timed = any(arm.cost for arm in table.arms)
    counting = any(arm.cost and arm.cost.counting_seconds for arm in table.arms)
    virtual = [
        (header, name)
        for header, name in (
            ("slowdown\nround-robin", "ep/slowdown"),
            ("slowdown\ngreedy", "ep/slowdown_greedy"),
            ("slowdown\nredundant", "ep/slowdown_redundant"),
        )
        if _has(table, name)
    ]
    if not timed and not virtual:
        return []
    headers = ["arm", "seeds", *(header for header, _ in virtual)]
    headers += ["seconds\na step"] * timed + ["of it\ncounting"] * counting
    rows = []
    for arm in table.arms:
        cells = [mean(arm.metrics.get(name), 3) for _, name in virtual]
        if timed:
            cells.append((median_of(arm.cost.step_seconds if arm.cost else ()), ""))
        if counting:
            cells.append((median_of(arm.cost.counting_seconds if arm.cost else ()), ""))
        rows.append([(arm.name, ""), _seeds(arm), *cells])
    machines = sorted({arm.cost.machine for arm in table.arms if arm.cost})
    told = f" Seconds: the median of runs that were timed alone on {', '.join(machines)}."
    return [
        Grid(
            title="Cost",
            caption="Virtual slowdown: of the expert layers, if micro-batches were dispatched "
            "together over ranks: the largest rank's load over the mean." + told * timed,
            headers=headers,
            rows=rows,
        )
    ]


def _frontier_grid(table: Table) -> list[Grid]:
    scopes = frontier(table)
    if not scopes:
        return []
    rows = []
    for scope in scopes:
        best = scope.best.metrics
        rows.append(
            [
                (scope.name, f"{len(scope.arms)} weights"),
                (f"{scope.best.science[WEIGHT]:g}", ""),
                mean(best.get("load/max_vio_global"), 2),
                mean(best.get(PRIMARY), 4),
                estimate_cell(scope.best_difference),
                (f"{scope.matched:.4f}" if scope.matched else "-", ""),
                estimate_cell(scope.matched_difference),
            ]
        )
    at = f" ({scopes[0].at:.2f} on average)" if scopes[0].at else ""
    return [
        Grid(
            title=f"Scopes over their weights; differences are to {scopes[0].name}",
            caption="Each scope at the weight of its lowest nats, which flatters all of them; and "
            f"all at one MaxVio of the validation set{at}, the middle of the range that they "
            "share, read off the line through the weights seed by seed. Differences are paired, "
            "with Student's t for one scope alone; nothing here is tested.",
            headers=[
                *("scope", "best\nweight", "MaxVio\nglobal", "nats a\ntoken", "difference"),
                *("at one\nMaxVio", "difference"),
            ],
            rows=rows,
        )
    ]


def _findings_grid(table: Table) -> list[Grid]:
    if not table.findings:
        return []
    unit = table.findings[0].unit
    rows = []
    for each in table.findings:
        rows.append(
            [
                (each.claim, f"{_compared(each)}; {each.source.partition(', ')[2]}"),
                (each.verdict, ""),
                estimate_cell(each.here),
                _paper(each),
                ("-" if each.resolved is None else f"{each.resolved:.4f}", ""),
                ("-" if each.seeds is None else f"{each.seeds:,}", ""),
            ]
        )
    return [
        Grid(
            title=f"Findings of {PAPER}, in nats a {unit}",
            caption="Here: with the 95 % interval. In the paper: its log ratio over an assumed 4 "
            "bytes a token (5 to 3). Resolves: half of the interval; smaller sizes these seeds "
            "cannot tell from 0. Seeds: about how many show the paper's size, or equality within "
            "a quarter of its gap, in four of five studies.",
            headers=["finding", "verdict", "here", "in the\npaper", "resolves", "seeds"],
            rows=rows,
        )
    ]


def _compared(verdict: Verdict) -> str:
    if verdict.type == "trend":
        return f"over {', '.join(verdict.arms)};{verdict.per}; {verdict.reason}"
    arm, against = verdict.arms
    return f"{arm} against {against}: {verdict.reason}"


def _paper(verdict: Verdict) -> Cell:
    if verdict.paper is None:
        return "-", ""
    middle, far, near = (words.signed(each) for each in verdict.paper)
    return middle, f"{near} to {far}"


def _perplexity_grid(table: Table) -> Grid:
    rows = []
    for arm in table.arms:
        nats = arm.metrics.get("valid/nats")
        rows.append(
            [
                (arm.name, ""),
                _seeds(arm),
                mean(nats, 4),
                (perplexity(arm.metrics.get("valid/ppl")), ""),
                mean(arm.metrics.get("valid/bits_per_byte"), 4),
                *_differences(table, arm, PRIMARY),
                percent_of_perplexity(nats),
            ]
        )
    compared = any(any(cell) for row in rows for cell in row[5:])
    return Grid(
        title="Perplexity" + f"; differences are to {table.baseline}" * compared,
        caption="Means ± as above: validation nats a token, their exponential, and bits a byte; "
        "of all, lower is better." + f" Difference in nats: {_meaning(table)}" * compared,
        headers=[
            *("arm", "seeds", "nats a\ntoken", "PPL", "bits a\nbyte"),
            *("difference", "paired t", "percent"),
        ],
        rows=rows,
    )


def _meaning(table: Table) -> str:
    """What stands in the columns of differences of nats."""
    seeds = max((len(each.per_seed) for each in table.comparisons.arms.values()), default=0)
    if table.primary != PRIMARY:
        told = "not tested; paired t: 95 % for one arm alone"
    elif seeds >= FEWEST_SEEDS:
        told = f"{TESTED}; paired t: 95 % for one arm alone"
    elif seeds == 1:
        told = "of one seed, as an interval takes three"
    else:
        told = "below it those of the seeds, as an interval takes three"
    return f"{told}; percent: of perplexity."


def _primary_grid(table: Table) -> Grid:
    rows = [
        [
            (arm.name, ""),
            _seeds(arm),
            mean(arm.metrics.get(table.primary), 4),
            *_differences(table, arm, table.primary),
        ]
        for arm in table.arms
    ]
    return Grid(
        title=f"Primary endpoint {table.primary}; differences are to {table.baseline}",
        caption=f"Difference: {TESTED}; paired t: for one arm alone.",
        headers=["arm", "seeds", "mean", "difference", "paired t"],
        rows=rows,
    )


def _differences(table: Table, arm: Arm, metric: str) -> tuple[Cell, Cell]:
    """The tested difference and the paired t beside it; of a metric not tested, only the latter."""
    described, none = arm.metrics.get(metric), ("", "")
    if described is None or described.difference is None:
        return none, none
    if metric != table.primary or arm.name not in table.comparisons.arms:
        return none, (words.signed(described.difference), interval(*ends(described)))
    comparison = table.comparisons.arms[arm.name]
    value, low, high = words.signed(described.difference), *ends(described)
    p = words.p_value(described.p)
    below = interval(low, high)
    if not below and 1 < len(comparison.per_seed) < FEWEST_SEEDS:
        below = " and ".join(words.signed(each) for each in comparison.per_seed.values())
    first: Cell = (f"{value}  {p}".strip(), below)
    paired = comparison.paired
    if paired is None:
        return first, none
    return first, (words.p_value(paired.p), interval(paired.low, paired.high))

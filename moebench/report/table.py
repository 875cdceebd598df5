"""The report as blocks: headings, grids of numbers, sentences.

What shows after few steps comes first: load and specialisation, then perplexity, the paper's
findings, and in words what the numbers can and cannot tell.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from moebench.records import printable
from moebench.report import words
from moebench.report.arms import Arm, Described, Table, percent
from moebench.report.findings import PAPER, Verdict
from moebench.report.frontier import WEIGHT, frontier
from moebench.report.reading import PRIMARY, SCOPES
from moebench.report.statistics import FEWEST_SEEDS, Estimate

Cell = tuple[str, str]  # what is said first, and what stands below it


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


MOST_DIGITS = 1e7  # from here on the perplexity of a run that diverged is shown by its power of 10
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
            (_count(arm.sequences), ""),
            (_count(arm.group_tokens), ""),
            *(_mean(arm.metrics.get(name), digits) for _, name, digits in columns),
        ]
        for arm in table.arms
    ]
    if table.random:
        random = [(_range(table.random.get(scope)), "") for scope in SCOPES]
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
    metrics = [name for name in metrics if _has(table, name)]
    rows = []
    for arm in table.arms:
        cells: list[Cell] = []
        for name in metrics:
            each = arm.metrics.get(name)
            value = each and each.difference
            difference = "" if value is None else f"{value:+.3g}"
            cells += [_plain(each), (difference, _short(*_ends(each)) if each else "")]
        rows.append([(arm.name, ""), _seeds(arm), *cells])
    return Grid(
        title=f"Metrics; differences are to {table.baseline}",
        caption="Means over seeds, ± half of a 95 % interval where there are 3; paired "
        "differences with 95 % intervals, for all arms together if of "
        f"{table.primary}, else for one arm alone.",
        headers=["arm", "seeds", *(each for name in metrics for each in (name, "difference"))],
        rows=rows,
    )


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
        cells = [_mean(arm.metrics.get(name), 3) for _, name in virtual]
        if timed:
            cells.append((_median(arm.cost.step_seconds if arm.cost else ()), ""))
        if counting:
            cells.append((_median(arm.cost.counting_seconds if arm.cost else ()), ""))
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


def _median(values: Sequence[float]) -> str:
    return f"{median(values):.4f}" if values else ""


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
                _mean(best.get("load/max_vio_global"), 2),
                _mean(best.get(PRIMARY), 4),
                _estimate(scope.best_difference),
                (f"{scope.matched:.4f}" if scope.matched else "-", ""),
                _estimate(scope.matched_difference),
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
                _estimate(each.here),
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


def _estimate(estimate: Estimate | None) -> Cell:
    if estimate is None:
        return "", ""
    return words.signed(estimate.value), _interval(estimate.low, estimate.high)


def _perplexity_grid(table: Table) -> Grid:
    rows = []
    for arm in table.arms:
        nats = arm.metrics.get("valid/nats")
        rows.append(
            [
                (arm.name, ""),
                _seeds(arm),
                _mean(nats, 4),
                (_perplexity(arm.metrics.get("valid/ppl")), ""),
                _mean(arm.metrics.get("valid/bits_per_byte"), 4),
                *_differences(table, arm, PRIMARY),
                _percent(nats),
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
            _mean(arm.metrics.get(table.primary), 4),
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
        ends = described.difference_low, described.difference_high
        return none, (words.signed(described.difference), _interval(*ends))
    comparison = table.comparisons.arms[arm.name]
    value, low, high = words.signed(described.difference), *_ends(described)
    p = words.p_value(described.p)
    below = _interval(low, high)
    if not below and 1 < len(comparison.per_seed) < FEWEST_SEEDS:
        below = " and ".join(words.signed(each) for each in comparison.per_seed.values())
    first: Cell = (f"{value}  {p}".strip(), below)
    paired = comparison.paired
    if paired is None:
        return first, none
    return first, (words.p_value(paired.p), _interval(paired.low, paired.high))


def _ends(described: Described) -> tuple[float | None, float | None]:
    return described.difference_low, described.difference_high


def _percent(nats: Described | None) -> Cell:
    if nats is None or (value := percent(nats.difference)) is None:
        return "", ""
    low, high = (percent(end) for end in _ends(nats))
    below = (
        f"{_hundredths(low)} to {_hundredths(high)}" if low is not None and high is not None else ""
    )
    return _hundredths(value), below


def _hundredths(value: float) -> str:
    return f"{value:.3g}" if value >= MOST_DIGITS else f"{round(value, 2) + 0.0:.2f}"


def _mean(described: Described | None, digits: int) -> Cell:
    if described is None or described.mean is None:
        return "-", ""
    half = ""
    if described.low is not None and described.high is not None:
        half = f"±{(described.high - described.low) / 2:.{digits}f}"
    return f"{described.mean:.{digits}f}", half


def _perplexity(described: Described | None) -> str:
    if described is None or described.mean is None:
        return "-"
    if described.mean >= MOST_DIGITS:
        return f"{described.mean:.3g}"
    return f"{described.mean:.3f}" if described.mean < 100 else f"{described.mean:,.0f}"


def _interval(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return ""
    return f"{words.signed(low)} to {words.signed(high)}"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _range(values: tuple[float, float] | None) -> str:
    if values is None:
        return "-"
    low, high = (f"{value:.2f}" for value in values)
    return low if low == high else f"{low}-{high}"


def _plain(described: Described | None) -> Cell:
    """A mean of any size, in four digits."""
    if described is None or described.mean is None:
        return "-", ""
    half = "" if described.low is None else f"±{described.mean - described.low:.2g}"
    return f"{described.mean:.4g}", half


def _short(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.3g} to {high:.3g}"

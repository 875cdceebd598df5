"""The grids of a report: a row an arm, a column a number."""

from collections.abc import Sequence

from moebench.catalogue import METRICS, Metric
from moebench.plans import PRIMARY
from moebench.report.infer.arms import Arm, Table
from moebench.report.infer.decisions import Decision
from moebench.report.infer.frontier import MAX_VIO, WEIGHT, frontier
from moebench.report.infer.metrics import ArmMetric
from moebench.report.infer.statistics import FEWEST_SEEDS
from moebench.report.read.run import SCOPES
from moebench.report.show import numbers
from moebench.report.show.blocks import Cell, Grid
from moebench.report.show.numbers import estimate_cell, four_decimals, interval, mean_cell, p_value
from moebench.report.show.sentences import control

DOMAIN_BITS = (
    "Domain bits: information of the expert about the domain, a check of the treatment, as evening "
    "the load of each domain drives them to 0 by itself"
)
DESCRIBED = "95 % for all arms together, as description"
PAIRED = "paired t: 95 % for one arm alone, with the p of its verdict where there is one"


def load(table: Table) -> Grid:
    """Load and specialisation, with random routing in the last row."""
    metrics = _metrics_of("load", table)
    rows = [
        [
            (arm.name, ""),
            _seeds(arm),
            (numbers.count(arm.sequences), ""),
            (numbers.count(arm.group_tokens), ""),
            *(_mean(arm, metric) for metric in metrics),
        ]
        for arm in table.arms
    ]
    if table.random:
        windows = [metric.name.removeprefix("load/max_vio_") for metric in metrics]
        random = [
            (numbers.value_range(table.random.get(window)) if window in SCOPES else "", "")
            for window in windows
        ]
        rows.append([("random routing", ""), *[("", "")] * 3, *random])
    return Grid(
        title="Load and specialisation",
        caption="Means over seeds, ± half of a 95 % interval where there are 3. Group: whose "
        "counts the balance loss averages. MaxVio: largest load over the mean, less 1, in a "
        "micro-batch, a step and the validation set; 0 is even. Load entropy: 1 is even. "
        + "; ".join([DOMAIN_BITS, *_notes(metrics)])
        + ".",
        headers=["arm", "seeds", "group\nseqs", "group\ntokens", *_headings(metrics)],
        rows=rows,
    )


def secondary(table: Table) -> list[Grid]:
    """The differences in the secondary endpoints, with their verdicts."""
    decided = {name: found for name, found in table.secondary_decisions.items() if found}
    if not decided:
        return []
    rows = []
    for arm in table.arms[1:]:
        cells: list[Cell] = []
        for name, decisions in decided.items():
            metric, decision = arm.metrics.get(name), decisions.get(arm.name)
            if metric is None or metric.difference is None or decision is None:
                cells += [("", ""), ("", "")]
                continue
            ends = interval(metric.difference_low, metric.difference_high)
            cells += [(four_decimals(metric.difference), ends), _told(decision)]
        rows.append([(arm.name, ""), _seeds(arm), *cells])
    headers = [text for name in decided for text in (_short(name), "verdict")]
    return [
        Grid(
            title=f"Secondary endpoints; differences are to {control(table)}",
            caption="Paired t: 95 % for one arm alone. p: adjusted by Holm's method for all of "
            "these differences and the findings on load and routing together, a family of its own.",
            headers=["arm", "seeds", *headers],
            rows=rows,
        )
    ]


def _told(decision: Decision) -> Cell:
    """The verdict on a difference, and its p."""
    if decision.p is None:
        return "", ""
    word = "cannot tell"
    if decision.decided:
        word = "lower" if decision.estimate.value < 0 else "higher"
    return word, p_value(decision.p)


def _short(name: str) -> str:
    """The heading of a metric's column in two lines, else its name."""
    metric = METRICS.get(name)
    return metric.column.heading if metric and metric.column else name


def perplexity(table: Table) -> Grid:
    """Quality, with the differences to the baseline."""
    metrics = _metrics_of("perplexity", table)
    rows = [
        [
            (arm.name, ""),
            _seeds(arm),
            *(_mean(arm, metric) for metric in metrics),
            *_differences(table, arm, PRIMARY),
            numbers.percent_cell(arm.metrics.get(PRIMARY)),
        ]
        for arm in table.arms
    ]
    compared = any(any(cell) for row in rows for cell in row[-3:])
    return Grid(
        title="Perplexity" + f"; differences are to {control(table)}" * compared,
        caption="Means ± as above: validation nats a token, their exponential, and bits a byte; "
        "of all, lower is better." + f" Difference in nats: {_meaning(table)}" * compared,
        headers=["arm", "seeds", *_headings(metrics), "difference", "paired t", "percent"],
        rows=rows,
    )


def primary_endpoint(table: Table) -> Grid:
    """The tested metric of a study whose endpoint is not the validation nats."""
    rows = [
        [
            (arm.name, ""),
            _seeds(arm),
            mean_cell(arm.metrics.get(table.primary), 4),
            *_differences(table, arm, table.primary),
        ]
        for arm in table.arms
    ]
    return Grid(
        title=f"Primary endpoint {table.primary}; differences are to {control(table)}",
        caption=f"Difference: {DESCRIBED}; {PAIRED}.",
        headers=["arm", "seeds", "mean", "difference", "paired t"],
        rows=rows,
    )


def chosen_metrics(table: Table, metrics: Sequence[str]) -> Grid:
    """The metrics that a reader chose: an arm a row, or a metric a row if they outnumber arms."""
    metrics = [name for name in metrics if _has(table, name)]
    arms = [
        (arm.name, _seeds(arm), [_value_and_difference(arm.metrics.get(name)) for name in metrics])
        for arm in table.arms
    ]
    if len(metrics) <= len(arms):
        headers = ["arm", "seeds", *(text for name in metrics for text in (name, "difference"))]
        rows = [
            [(arm, ""), seeds, *(cell for pair in pairs for cell in pair)]
            for arm, seeds, pairs in arms
        ]
    else:
        headers = ["metric", *(text for arm, *_ in arms for text in (arm, "difference"))]
        rows = [[("seeds", ""), *(cell for _, seeds, _ in arms for cell in (seeds, ("", "")))]]
        rows += [
            [(name, ""), *(cell for *_, pairs in arms for cell in pairs[at])]
            for at, name in enumerate(metrics)
        ]
    return Grid(
        title=f"Metrics; differences are to {control(table)}",
        caption="Means over seeds, ± half of a 95 % interval where there are 3; paired "
        "differences with 95 % intervals, for all arms together if of "
        f"{table.primary}, else for one arm alone.",
        headers=headers,
        rows=rows,
    )


def domains(table: Table) -> Grid:
    """Nats of each domain, a column an arm."""
    prefix = f"{PRIMARY}/"
    names = dict.fromkeys(
        name for arm in table.arms for name in arm.metrics if name.startswith(prefix)
    )
    rows = [
        [
            (name.removeprefix(prefix), ""),
            *(_domain_cell(arm.metrics.get(name)) for arm in table.arms),
        ]
        for name in names
    ]
    return Grid(
        title="Nats a token of each domain",
        caption=f"Means over seeds; below them the mean paired difference to {control(table)}. "
        "Nothing here is tested.",
        headers=["domain", *(arm.name for arm in table.arms)],
        rows=rows,
    )


def cost(table: Table) -> list[Grid]:
    """The virtual slowdown and the timed cost, where there is any."""
    timed = any(arm.cost for arm in table.arms)
    counting = any(arm.cost and arm.cost.counting_seconds for arm in table.arms)
    metrics = _metrics_of("cost", table)
    if not timed and not metrics:
        return []
    headers = ["arm", "seeds", *_headings(metrics)]
    headers += ["seconds\na step"] * timed + ["of it\ncounting"] * counting
    rows = []
    for arm in table.arms:
        cells = [_mean(arm, metric) for metric in metrics]
        if timed:
            cells.append((numbers.median_of(arm.cost.step_seconds if arm.cost else ()), ""))
        if counting:
            cells.append((numbers.median_of(arm.cost.counting_seconds if arm.cost else ()), ""))
        rows.append([(arm.name, ""), _seeds(arm), *cells])
    machines = sorted({arm.cost.machine for arm in table.arms if arm.cost})
    timing = f" Seconds: the median of runs that were timed alone on {', '.join(machines)}."
    return [
        Grid(
            title="Cost",
            caption="Virtual slowdown: of the expert layers, if micro-batches were dispatched "
            "together over ranks: the largest rank's load over the mean." + timing * timed,
            headers=headers,
            rows=rows,
        )
    ]


def scopes(table: Table) -> list[Grid]:
    """Scopes over several weights, where there are any."""
    curves = frontier(table)
    if not curves:
        return []
    rows = []
    for curve in curves:
        best = curve.best.metrics
        rows.append(
            [
                (curve.name, f"{len(curve.arms)} weights"),
                (f"{curve.best.science[WEIGHT]:g}", ""),
                mean_cell(best.get(MAX_VIO), 2),
                mean_cell(best.get(PRIMARY), 4),
                estimate_cell(curve.best_difference),
                (f"{curve.matched:.4f}" if curve.matched else "-", ""),
                estimate_cell(curve.matched_difference),
            ]
        )
    at = f" ({curves[0].at:.2f} on average)" if curves[0].at else ""
    return [
        Grid(
            title=f"Scopes over their weights; differences are to {curves[0].name}",
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


# Columns


def _metrics_of(grid: str, table: Table) -> list[Metric]:
    """The metrics that have a column in a grid; optional ones only where an arm has them."""
    columns = [(metric, metric.column) for metric in METRICS.values() if metric.column]
    return [
        metric
        for metric, column in columns
        if column.table == grid and not (column.optional and not _has(table, metric.name))
    ]


def _headings(metrics: Sequence[Metric]) -> list[str]:
    return [metric.column.heading for metric in metrics if metric.column]


def _notes(metrics: Sequence[Metric]) -> list[str]:
    """What the caption adds about some columns."""
    return [metric.column.note for metric in metrics if metric.column and metric.column.note]


# Cells


def _mean(arm: Arm, metric: Metric) -> Cell:
    """The mean of a metric, in the decimals of its column."""
    value = arm.metrics.get(metric.name)
    if metric.name == "valid/ppl":
        return numbers.perplexity(value), ""
    return mean_cell(value, metric.column.digits if metric.column else 4)


def _has(table: Table, metric: str) -> bool:
    return any(metric in arm.metrics for arm in table.arms)


def _seeds(arm: Arm) -> Cell:
    """How many seeds are finished, and below, the states of the others."""
    return str(len(arm.seeds)), ", ".join(f"{n} {state}" for state, n in arm.unfinished.items())


def _value_and_difference(metric: ArmMetric | None) -> tuple[Cell, Cell]:
    if metric is None or metric.difference is None:
        return numbers.general_mean_cell(metric), ("", "")
    ends = numbers.general_interval(metric.difference_low, metric.difference_high)
    return numbers.general_mean_cell(metric), (f"{metric.difference:+.3g}", ends)


def _domain_cell(metric: ArmMetric | None) -> Cell:
    if metric is None:
        return "-", ""
    difference = "" if metric.difference is None else f"{metric.difference:+.4f}"
    return "-" if metric.mean is None else f"{metric.mean:.4f}", difference


def _meaning(table: Table) -> str:
    """What the columns of differences in nats hold."""
    comparisons = table.comparisons.arms.values()
    seeds = max((len(comparison.per_seed) for comparison in comparisons), default=0)
    if table.primary != PRIMARY:
        meaning = "not tested; paired t: 95 % for one arm alone"
    elif seeds >= FEWEST_SEEDS:
        meaning = f"{DESCRIBED}; {PAIRED}"
    elif seeds == 1:
        meaning = "of one seed, as an interval takes three"
    else:
        meaning = "below it those of the seeds, as an interval takes three"
    return f"{meaning}; percent: of perplexity."


def _differences(table: Table, arm: Arm, name: str) -> tuple[Cell, Cell]:
    """The tested difference and the paired t beside it; of a metric not tested, only the latter."""
    metric, none = arm.metrics.get(name), ("", "")
    if metric is None or metric.difference is None:
        return none, none
    value = four_decimals(metric.difference)
    ends = interval(metric.difference_low, metric.difference_high)
    if name != table.primary or arm.name not in table.comparisons.arms:
        return none, (value, ends)
    comparison = table.comparisons.arms[arm.name]
    if not ends and 1 < len(comparison.per_seed) < FEWEST_SEEDS:
        ends = " and ".join(map(four_decimals, comparison.per_seed.values()))
    tested: Cell = (value, ends)
    paired = comparison.paired
    if paired is None:
        return tested, none
    return tested, (p_value(metric.p), interval(paired.low, paired.high))

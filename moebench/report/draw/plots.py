"""Plots of one table: differences, groups, load, cost, and quality against balance.

A plot function returns None where the table has nothing for it. Bars and bands are 95 % intervals,
over seeds.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from moebench.catalogue import find
from moebench.plans import PRIMARY
from moebench.report.draw.chart import HEIGHT, SHOWN, Panel, Plot
from moebench.report.draw.curves import NATS, curves, switches
from moebench.report.draw.curves import differences as curve_differences
from moebench.report.draw.headroom import over_training
from moebench.report.draw.heatmaps import domains
from moebench.report.draw.marks import bars, quantitative, tips, zero_line
from moebench.report.draw.style import Spec, arm_scales, drawn, not_drawn, rounded
from moebench.report.infer.arms import CONTROLS, Arm, Table
from moebench.report.infer.frontier import MAX_VIO, WEIGHT, ScopeCurve, frontier
from moebench.report.infer.metrics import ArmMetric
from moebench.report.paper.findings import paper_gaps
from moebench.report.read.frame import Frame

MICRO, BITS, SLOWDOWN = "load/max_vio_micro", "specialization/domain", "ep/slowdown"
TITLES = {
    PRIMARY: NATS,
    MICRO: "MaxVio of micro-batches",
    MAX_VIO: "MaxVio of the validation set",
    BITS: "domain bits",
    SLOWDOWN: "virtual slowdown (1: none)",
}
PADDED: Spec = {"padding": 12}  # so that no point lies on an edge
LOG: Spec = {"type": "log", "nice": False, "padding": 12}
ROOMY: Spec = {**LOG, "padding": 36}  # pixels, for the weights beside the outermost points
LOG_AXIS: Spec = {"format": "~g", "tickCount": 6, "grid": False}
RIGHT = {"align": "left", "dx": 6, "dy": -5}  # of points of the highest line
BELOW = {"align": "right", "dx": -5, "dy": 12}  # and of the lowest
ROW = 22  # pixels of an arm and its seeds


def plots(table: Table, frame: Frame) -> list[Plot]:
    """All that the table has something for, the most important first."""
    made = [make(table, frame) for make in _PLOTS]
    return [plot for plot in made if plot is not None]


def differences(table: Table, _: Frame) -> Plot | None:
    """Forest plot of the primary endpoint."""
    arms = [arm for arm in table.arms if arm.name in table.comparisons.arms]
    if not arms:
        return None
    gaps = paper_gaps(table.bytes_per_token) if table.baseline == "micro" else None
    title = [f"{table.primary}, less {table.baseline}", *_better(table)]
    height = max(HEIGHT, ROW * len(arms))
    panel = Panel("differences", _forest(table, arms, title, gaps), "x", width=460, height=height)
    return Plot(
        "differences",
        f"Differences to {table.baseline}",
        "Points and bars: mean differences, with 95 % intervals that hold for all arms together; "
        "an arm without a bar has too few seeds. Strokes: the difference of each seed. Bars "
        "describe; verdicts rest on the paired t of each arm."
        + (
            " Grey: the paper's global against micro, at an assumed 3 to 5 bytes a token."
            if gaps
            else ""
        ),
        (panel,),
        arms=False,
    )


def _forest(
    table: Table, arms: Sequence[Arm], title: Sequence[str], gaps: Sequence[float] | None
) -> Spec:
    """Differences with their intervals, a row an arm, and the strokes of seeds."""
    data, strokes = [], []
    for arm in arms:
        comparison = table.comparisons.arms[arm.name]
        found = comparison.adjusted
        row = {"arm": arm.name, "value": rounded(found.value), "seeds": len(comparison.per_seed)}
        row |= {"low": rounded(found.low), "high": rounded(found.high)}
        data.append(row)
        strokes += [
            {"arm": arm.name, "seed": seed, "value": rounded(value)}
            for seed, value in comparison.per_seed.items()
        ]
    y = {"field": "arm", "type": "nominal", "sort": None, "title": None}
    y |= {"axis": {"grid": False, "domain": False, "ticks": False, "labelPadding": 8}}
    x = quantitative("value", title, axis={"format": "~g"})
    color = {"color": arm_scales(table)["color"] | {"legend": None}}
    told = tips({"arm": ""}, {"value": "difference", "low": "low", "high": "high", "seeds": ""})
    stroke = {"type": "tick", "thickness": 1.5, "size": 9, "yOffset": 8, "opacity": 0.75}
    return {
        "data": {"values": data},
        "layer": [
            *([paper_band(gaps)] if gaps else []),
            zero_line("x"),
            {
                "data": {"values": strokes},
                "mark": stroke,
                "encoding": {"x": x, "y": y, **color}
                | {"tooltip": tips({"arm": "", "seed": ""}, {"value": "difference"})},
            },
            {
                "mark": {"type": "rule", "strokeWidth": 2},
                "encoding": {
                    "x": {**x, "field": "low"},
                    "x2": {"field": "high"},
                    "y": y,
                    "tooltip": told,
                    **color,
                },
            },
            {
                "mark": {"type": "point", "size": 90},
                "encoding": {"x": x, "y": y, **color, "tooltip": told}
                | {"shape": arm_scales(table)["shape"] | {"legend": None}},
            },
        ],
    }


def paper_band(gaps: Sequence[float]) -> Spec:
    """A band where the paper's difference lies."""
    about = {"field": "about", "type": "nominal"}
    ends = {"near": -max(gaps), "far": -min(gaps), "about": "the paper's global against micro"}
    return {
        "data": {"values": [ends]},
        "mark": {"type": "rect"},
        "encoding": {
            "x": {"field": "near", "type": "quantitative"},
            "x2": {"field": "far"},
            "tooltip": [about],
        },
    }


def over_balance_bsz(table: Table, _: Frame) -> Plot | None:
    """Nats and specialisation against the number of sequences balanced together."""
    arms = [
        arm
        for arm in table.arms
        if arm.science.get("scope") == "group"
        and arm.sequences
        and not {*CONTROLS, "balance.estimator"} & {*arm.science}
    ]
    weights = {arm.science.get(WEIGHT) for arm in arms}
    if len({arm.sequences for arm in arms}) < 3 or len(weights) > 1:
        return None
    arms.sort(key=lambda arm: arm.sequences or 0)
    shuffled = [arm for arm in table.arms if arm.science.get("scope") == "shuffled"]
    seeds = min(len(arm.seeds) for arm in arms)
    return Plot(
        "balance_bsz",
        "Over the number of sequences that are balanced together",
        f"Means over seeds ({seeds} or more); bars: 95 % intervals of the mean, where there "
        "are three. Seeds move all arms alike, so bars that overlap do not mean that arms are "
        "equal: read the differences.",
        tuple(
            Panel(name, _sized(metric, {"consecutive sequences": arms, "shuffled": shuffled}))
            for name, metric in (("nats", PRIMARY), ("bits", BITS), ("max-vio", MICRO))
        ),
        arms=False,
    )


def _sized(metric: str, groups: Mapping[str, Sequence[Arm]]) -> Spec:
    """A metric over the size of the balance group, a line for each kind of group."""
    data = [
        {"arm": arm.name, "group": kind, "size": arm.sequences, **_ends(arm.metrics.get(metric))}
        for kind, arms in groups.items()
        for arm in arms
        if metric in arm.metrics
    ]
    sizes = sorted({row["size"] for row in data})
    x = quantitative("size", "sequences balanced together", scale={"type": "log", "base": 2})
    x["axis"] = {"values": sizes, "format": "~g", "grid": False, "labelOverlap": True}
    kinds = {"domain": list(groups), "range": "category"}
    color = {"field": "group", "type": "nominal", "scale": kinds, "legend": {"title": None}}
    told = tips({"arm": ""}, {"size": "sequences", "mean": TITLES[metric], "low": "", "high": ""})
    y = quantitative("mean", None, axis={"format": "~g"})
    line = {"type": "line", "opacity": 0.8}
    return {
        "title": TITLES[metric],
        "data": {"values": data},
        "layer": [
            {
                "transform": [{"filter": "datum.group != 'shuffled'"}],
                "mark": line,
                "encoding": {"x": x, "y": y, "color": color},
            },
            bars("y", {**y, "field": "low"}, {"x": x, "color": color, "tooltip": told}),
            {
                "mark": {"type": "point"},
                "encoding": {"x": x, "y": y, "color": color, "tooltip": told},
            },
        ],
    }


def specialisation(table: Table, _: Frame) -> Plot | None:
    """Specialisation against load, one point an arm."""
    arms = [arm for arm in drawn(table) if BITS in arm.metrics]
    if len(arms) < 2:
        return None
    scopes = {MICRO: "micro", MAX_VIO: "global"}
    return Plot(
        "specialisation",
        "Specialisation against load",
        "To the left: more even load; up: experts carry more information about domains. Dashed: "
        "the MaxVio of random routing. Bars: 95 % intervals of the means over seeds, where there "
        f"are three.{not_drawn(table)}",
        tuple(
            Panel(scope, _against(table, arms, metric, BITS, table.random.get(scope), log=True))
            for metric, scope in scopes.items()
            if any(metric in arm.metrics for arm in arms)
        ),
    )


def cost(table: Table, _: Frame) -> Plot | None:
    """Nats against the slowdown that the load would cause over ranks."""
    arms = [arm for arm in drawn(table) if SLOWDOWN in arm.metrics and PRIMARY in arm.metrics]
    if len(arms) < 2:
        return None
    return Plot(
        "cost",
        "Quality against virtual cost",
        "The slowdown that expert layers would have if micro-batches were dispatched together "
        "over ranks: the largest rank's load over the mean. Lower and further left is better. "
        f"Bars: 95 % intervals of the means over seeds, where there are three.{not_drawn(table)}",
        (Panel("cost", _against(table, arms, SLOWDOWN, PRIMARY), width=460),),
    )


def _against(
    table: Table,
    arms: Sequence[Arm],
    across: str,
    up: str,
    line: tuple[float, float] | None = None,
    log: bool = False,
) -> Spec:
    """One metric against another: a point an arm, with bars both ways.

    Args:
        line: ends of the values of `across` at which there is a vertical line, at the first.
        log: whether the x axis is logarithmic.
    """
    data = [
        {"arm": arm.name, **_ends(arm.metrics[across], "x"), **_ends(arm.metrics[up], "y")}
        for arm in arms
        if across in arm.metrics and arm.metrics[across].mean is not None
    ]
    log = log and all(row["x"] > 0 and (row["xlow"] or 1) > 0 for row in data)
    x = quantitative(
        "x", TITLES[across], **({"scale": LOG, "axis": LOG_AXIS} if log else {"scale": PADDED})
    )
    y = quantitative("y", TITLES[up], scale=PADDED, axis={"format": "~g"})
    scales = arm_scales(table)
    told = tips({"arm": ""}, {"x": TITLES[across], "y": TITLES[up]})
    color = {"color": scales["color"], "tooltip": told}
    random: list[Spec] = []
    if line:
        at = {"data": {"values": [{"about": f"random routing {line[0]:.3g}"}]}}
        about = {"field": "about", "type": "nominal"}
        mark = {"type": "rule", "strokeDash": [4, 3], "strokeWidth": 1}
        encoding = {"x": {"datum": line[0], "type": "quantitative"}, "tooltip": [about]}
        random = [{**at, "mark": mark, "encoding": encoding}]
    return {
        "data": {"values": data},
        "transform": [SHOWN],
        "layer": [
            bars("y", {**y, "field": "ylow"}, {"x": x, **color}, "yhigh"),
            bars("x", {**x, "field": "xlow"}, {"y": y, **color}, "xhigh"),
            *random,
            {
                "mark": {"type": "point", "size": 90},
                "encoding": {"x": x, "y": y, "shape": scales["shape"], **color},
            },
        ],
    }


def weights(table: Table, _: Frame) -> Plot | None:
    """The frontier: nats against MaxVio, a line a scope through its weights."""
    scopes = frontier(table)
    if not scopes:
        return None
    return Plot(
        "weights",
        "Quality against balance, over the weight of the balance loss",
        "Numbers: loss.balance, in the same order on the lines between. Lower and further left is "
        "better; a scope whose line lies "
        "below another's is better at every balance. Dashed: the MaxVio at which the table "
        "compares scopes. Means over seeds, without intervals: the table has those.",
        (Panel("weights", _frontier(scopes), width=460, height=260),),
        arms=False,
    )


def _frontier(scopes: Sequence[ScopeCurve]) -> Spec:
    """A line a scope, each point labelled by its weight."""
    data = [
        {
            "scope": scope.name,
            "weight": arm.science[WEIGHT],
            "x": rounded(arm.metrics[MAX_VIO].mean),
            "y": rounded(arm.metrics[PRIMARY].mean),
        }
        for scope in scopes
        for arm in scope.arms
    ]
    names = [scope.name for scope in scopes]
    legend = {"legend": {"title": None}}
    kind = {"field": "scope", "type": "nominal", **legend}
    color = {**kind, "scale": {"domain": names, "range": "category"}}
    shape = {**kind, "scale": {"domain": names, "range": "symbol"}}
    x = quantitative("x", f"{TITLES[MAX_VIO]} (left: more even)", scale=ROOMY, axis=LOG_AXIS)
    y = quantitative("y", NATS, axis={"format": "~g"})
    told = tips({"scope": ""}, {"weight": WEIGHT, "x": TITLES[MAX_VIO], "y": NATS})
    path = {"order": {"field": "weight", "type": "quantitative"}, "color": color}
    dashed = {"type": "rule", "strokeDash": [4, 3], "strokeWidth": 1}
    matched = [
        {
            "data": {"values": [{}]},
            "mark": dashed,
            "encoding": {"x": {"datum": scopes[0].at, "type": "quantitative"}},
        }
    ]
    return {
        "data": {"values": data},
        "layer": [
            {"mark": {"type": "line"}, "encoding": {"x": x, "y": y, **path}},
            {
                "mark": {"type": "point"},
                "encoding": {"x": x, "y": y, "color": color, "shape": shape, "tooltip": told},
            },
            *(
                {
                    "transform": [{"filter": {"field": "scope", "equal": scope}}],
                    "mark": {"type": "text", "fontSize": 10, **place},
                    "encoding": {"x": x, "y": y, "text": {"field": "weight", "format": "~g"}},
                }
                for scope, place in ((names[0], RIGHT), (names[-1], BELOW))
            ),
            *(matched if scopes[0].at else []),
        ],
    }


_PLOTS: tuple[Callable[[Table, Frame], Plot | None], ...] = (
    differences,
    cost,
    specialisation,
    weights,
    curves,
    curve_differences,
    over_balance_bsz,
    domains,
    switches,
    over_training,
)


# Pieces


def _ends(metric: ArmMetric | None, prefix: str = "") -> dict[str, Any]:
    """Mean and ends of the interval of a metric, as fields of a row."""
    low, high = f"{prefix}low", f"{prefix}high"
    if metric is None:
        return {prefix or "mean": None, low: None, high: None}
    mean = {prefix or "mean": rounded(metric.mean)}
    return {**mean, low: rounded(metric.low), high: rounded(metric.high)}


def _better(table: Table) -> list[str]:
    """The unit of the primary endpoint, and which values are better: a line, or none."""
    metric = find(table.primary)
    if metric is None:
        return []
    better = f"{metric.direction} is better" if metric.direction != "neither" else ""
    text = ", ".join(filter(None, (metric.unit, better)))
    return [f"({text})"] if text else []

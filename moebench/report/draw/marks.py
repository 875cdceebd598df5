"""Parts of specifications that several plots share: axes, error bars, curves with bands."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moebench.report.draw.chart import SHOWN, Panel
from moebench.report.draw.style import Spec, arm_scales, line_scales, rounded
from moebench.report.infer.arms import Table
from moebench.report.infer.statistics import FEWEST_SEEDS, LEVEL

POINTS = 32  # of a curve; more rows are averaged over stretches
BANDED = 6  # arms, more of which hide one another's bands
TOLD = 12  # arms whose values a reader reads at once beside the pointer


def quantitative(field: str, title: str | Sequence[str] | None = None, **more: Any) -> Spec:
    """An encoding by a number, on an axis that need not begin at 0."""
    scale = more.pop("scale", {})
    scale = scale if scale.get("type") == "log" else {"zero": False, **scale}
    return {"field": field, "type": "quantitative", "title": title, "scale": scale, **more}


def tips(names: Mapping[str, str], numbers: Mapping[str, str]) -> list[Spec]:
    """What is told beside the pointer: titles by field, "" for the field's own name."""
    return [
        *({"field": field, "type": "nominal", "title": t or field} for field, t in names.items()),
        *(
            {"field": field, "type": "quantitative", "title": title or field, "format": ".4~g"}
            for field, title in numbers.items()
        ),
    ]


def bars(channel: str, low: Spec, others: Mapping[str, Any], high: str = "high") -> Spec:
    """Bars from one field to another, where there is an interval."""
    return {
        "transform": [{"filter": f"isValid(datum['{low['field']}'])"}],
        "mark": {"type": "rule", "strokeWidth": 1.4},
        "encoding": {channel: low, f"{channel}2": {"field": high}, **others},
    }


def zero_line(channel: str = "y") -> Spec:
    """A line at 0."""
    rule = {"type": "rule", "strokeWidth": 1.2}
    return {"data": {"values": [{}]}, "mark": rule, "encoding": {channel: {"datum": 0}}}


def means(values: Any) -> list[tuple[float, float, float | None, float | None]]:
    """x, mean, and the ends of its 95 % interval, of a frame with a row an x and a column a seed.

    More than POINTS rows are first averaged over stretches of equal length, seed by seed. An
    interval takes three seeds that vary, as everywhere in a report.
    """
    from scipy.special import stdtrit

    x, content = values.index.to_numpy(float), values.to_numpy(float)
    known = ~np.isnan(content).all(axis=1)
    x, content = x[known], content[known]
    if len(x) > POINTS:
        x, content = _averaged(x, content)
    n = (~np.isnan(content)).sum(axis=1)
    mean = np.nansum(content, axis=1) / n
    squares = np.nansum((content - mean[:, None]) ** 2, axis=1)
    deviation = np.sqrt(squares / np.maximum(n - 1, 1))
    half = stdtrit(np.maximum(n - 1, 1), (1 + LEVEL) / 2) * deviation / np.sqrt(n)
    sure = (n >= FEWEST_SEEDS) & (deviation > 1e-12 * np.abs(mean))
    return [
        (float(at), float(m), float(m - h) if ok else None, float(m + h) if ok else None)
        for at, m, h, ok in zip(x, mean, half, sure, strict=True)
    ]


def _averaged(x: np.ndarray, content: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    stretch = np.minimum(np.arange(len(x)) * POINTS // len(x), POINTS - 1)
    there = ~np.isnan(content)
    sums = np.zeros((POINTS, content.shape[1]))
    counts = np.zeros_like(sums)
    np.add.at(sums, stretch, np.where(there, content, 0.0))
    np.add.at(counts, stretch, there)
    with np.errstate(invalid="ignore"):
        return np.bincount(stretch, x) / np.bincount(stretch), sums / counts


class Axis:
    """The steps, with the tokens below them: the x axis of a curve.

    Where arms differ in the tokens of a step, the axis has the tokens alone.
    """

    def __init__(self, table: Table) -> None:
        self.per_step = {
            arm.name: arm.science.get("global_bsz", 0) * arm.science.get("seq_len", 0)
            for arm in table.arms
        }
        common = {*self.per_step.values()}
        self.tokens = common.pop() if len(common) == 1 else None
        self.field = "step" if self.tokens is not None else "tokens"

    def values(self, arm: str, steps: Any) -> Any:
        return steps if self.tokens is not None else steps * self.per_step[arm]

    def encoding(self) -> Spec:
        """Of x."""
        axis: Spec = {"grid": False, "tickCount": 4, "format": "~s", "labelSeparation": 8}
        title = "tokens"
        if self.tokens:
            title = "step, and tokens below it"
            axis["labelExpr"] = (
                f"[format(datum.value, ',.0f'), format(datum.value * {self.tokens}, '.2~s')]"
            )
        elif self.tokens is not None:
            title = "step"
        scale = {"zero": False, "nice": False}
        return quantitative(self.field, title, axis=axis, scale=scale)


def curve(
    name: str,
    title: str,
    table: Table,
    values: Mapping[str, Any],
    *,
    log: bool = False,
    zero: bool = False,
    more: Sequence[Spec] = (),
) -> Panel | None:
    """Means over seeds as curves, an arm a curve, with bands where few arms share the panel.

    Args:
        name, title: of the panel.
        table: of the arms.
        values: by arm, a frame with a row a step and a column a seed.
        log: whether the y axis is logarithmic.
        zero: whether 0 has a line.
        more: layers behind the curves.

    Returns:
        None where no arm has two points.
    """
    axis = Axis(table)
    points = {
        arm: means(of_arm.set_axis(axis.values(arm, of_arm.index.to_numpy(float))))
        for arm, of_arm in values.items()
    }
    points = {arm: of_arm for arm, of_arm in points.items() if len(of_arm) > 1}
    if not points:
        return None
    data = [row for arm, of_arm in points.items() for row in _rows(arm, axis.field, of_arm)]
    log = log and _positive(data)
    scale: Spec = {"nice": False, "padding": 6, **({"type": "log"} if log else {})}
    if (domain := _domain([*points.values()], zero)) is not None:
        scale |= {"domain": domain, "padding": 0}
    y = quantitative("mean", None, scale=scale, axis={"format": "~g", "tickCount": 6})
    return Panel(
        name,
        {
            "title": title,
            "data": {"values": data},
            "transform": [SHOWN],
            "layer": [
                *([zero_line()] if zero else []),
                *more,
                *_curve_layers(table, axis.encoding(), y, banded=len(values) <= BANDED),
            ],
        },
        hover=_hover(axis, table),
    )


def _rows(arm: str, field: str, points: Sequence[Sequence[float | None]]) -> list[Spec]:
    """The points of an arm as data, of which about seven are marked to have a symbol.

    Args:
        field: of the x axis.
        points: as `means` gives them.
    """
    every, rows = max(1, len(points) // 6), []
    for place, (x, mean, low, high) in enumerate(points):
        row = {"arm": arm, field: rounded(x), "mean": rounded(mean)}
        row |= {"low": rounded(low), "high": rounded(high)} if low is not None else {}
        row |= {"mark": 1} if place % every == 0 or place == len(points) - 1 else {}
        rows.append(row)
    return rows


def _curve_layers(table: Table, x: Spec, y: Spec, banded: bool) -> list[Spec]:
    """A line an arm, with its symbol at some points, and a band for its interval."""
    lines, symbols = line_scales(table), arm_scales(table)
    layers: list[Spec] = [
        {"mark": {"type": "line", "clip": True}, "encoding": {"x": x, "y": y, **lines}},
        {
            "transform": [{"filter": "datum.mark"}],
            "mark": {"type": "point", "clip": True, "size": 36},
            "encoding": {"x": x, "y": y, **symbols},
        },
    ]
    if banded:
        ends = {"y": {**y, "field": "low"}, "y2": {"field": "high"}}
        band = {
            "transform": [{"filter": "isValid(datum.low)"}],
            "mark": {"type": "area", "opacity": 0.14, "clip": True},
            "encoding": {"x": x, **ends, "color": lines["color"]},
        }
        layers.insert(0, band)
    return layers


def _hover(axis: Axis, table: Table) -> tuple[Spec, ...]:
    """A line at the step nearest to the pointer, with the values of all arms there."""
    if len(table.arms) > TOLD:
        return ()
    half = "isValid(datum.low) ? ' ± ' + format((datum.high - datum.low) / 2, '.4~f') : ''"
    nearest = {"type": "point", "fields": [axis.field], "nearest": True}
    when = {"on": "pointermove", "clear": "pointerout"}
    near = {"param": "at", "empty": False, "value": 0.7}
    return (
        {
            "transform": [
                {"calculate": f"format(datum.mean, '.4~f') + ({half})", "as": "told"},
                {"pivot": "arm", "value": "told", "groupby": [axis.field], "op": "max"},
            ],
            "mark": {"type": "rule", "tooltip": {"content": "data"}, "strokeWidth": 1},
            "encoding": {"x": axis.encoding(), "opacity": {"condition": near, "value": 0}},
            "params": [{"name": "at", "select": {**nearest, **when}}],
        },
    )


def _positive(data: Sequence[Mapping[str, Any]]) -> bool:
    return all(row.get("low", row["mean"]) > 0 and row["mean"] > 0 for row in data)


def _domain(curves: Sequence[Sequence[tuple[Any, ...]]], zero: bool) -> list[float] | None:
    """The range of y where the intervals of a beginning would leave the rest little height.

    It has all means, and the ends of the intervals of the second half. Otherwise the axis fits
    what is drawn, also after arms are switched off, and this returns None.
    """
    calm, every = ([0.0] if zero else []), []
    for points in curves:
        calm += [mean for _, mean, _, _ in points]
        for place, (_, _, *ends) in enumerate(points):
            if ends[0] is not None:
                every += ends
                calm += ends if place >= len(points) // 2 else []
    low, high = min(calm), max(calm)
    if max([*calm, *every]) - min([*calm, *every]) < 1.5 * (high - low):
        return None
    room = 0.06 * (high - low)
    return [float(f"{low - room:.4g}"), float(f"{high + room:.4g}")]

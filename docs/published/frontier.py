"""The picture of a study of weights: loss against load, a line a scope."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.headroom_size import LEARNED, role_of
from docs.published.cells import nats
from docs.published.picture import AXIS, FONT, LINE, UNIT
from docs.published.study import Row, Study
from docs.published.weights import curves_of
from moebench.plans import PRIMARY
from moebench.report.draw.chart import Panel, Plot
from moebench.report.draw.marks import quantitative
from moebench.report.draw.style import COLOURS, THEMES, Spec, rounded
from moebench.report.infer.frontier import FEWEST_WEIGHTS, MAX_VIO
from moebench.report.show.numbers import as_percent, interval

TITLE = "Loss against load"
OF_WEIGHTS = (
    "Means over seeds, a line a scope; numbers are `loss.balance`, and those of the line between "
    "follow in the same order. Full points: the difference of scopes at this weight was tested. "
    "Hollow points, and what is in words: described. Dashed: where loads are equal."
)
COMPARED = {"equal MaxVio": "At equal loads ({})", "best weight": "At the best weight of each"}
SHADES = {"micro": COLOURS[5], "shuffled": COLOURS[1], "global": COLOURS[3]}
INKS = SHADES | {"shuffled": "#8f6200", "global": "#00735a"}  # dark enough for words
SOFT, DARK = (THEMES["light"]["legend"][key] for key in ("titleColor", "labelColor"))
WIDTH, HEIGHT = 298, 262  # pixels of the panel
TICKS = [of * 10.0**power for power in range(-3, 3) for of in (1, 2, 5)]
ROOM = {"x": (0.25, 0.2), "y": (0.12, 0.04)}  # of the data's range, before and after it
NEAR_X, NEAR_Y = 0.1, 0.02  # in logarithms, and of the axis: points at one place
X, Y = ({"field": name, "type": "quantitative"} for name in "xy")
POINT = {"x": X, "y": Y}
CORNER = {"x": {"value": WIDTH - 168}, "y": {"value": 1.9 * LINE}}  # where no line of losses is
BLOCK = 3.4 * LINE  # pixels from one statement to the next
Lines = Mapping[str, Sequence[Spec]]  # points by scope, by weight


def frontier(study: Study) -> Plot | None:
    """Loss against load, a line a scope through its weights; None where no scope has three."""
    lines = _lines(study)
    if not lines:
        return None
    none = [{**at, "text": "no balance"} for at in [_at(study.by_arm().get("none", ()))] if at]
    domains = {
        axis: _domain([point[axis] for of in [*lines.values(), none] for point in of], axis)
        for axis in "xy"
    }
    cross = {"type": "point", "shape": "cross", "color": SOFT}
    layers = [
        _axes(domains),
        *_equal_loads(study, lines),
        *_drawn(lines),
        {"data": {"values": none}, "mark": cross, "encoding": POINT},
        *_text(none, SOFT, align="center", dy=-14),
        *_numbers(lines, domains),
        *_names(lines),
        *_told(study, lines),
    ]
    panel = Panel("frontier", {"layer": layers}, width=WIDTH, height=HEIGHT)
    return Plot("frontier", TITLE, OF_WEIGHTS, (panel,), arms=False)


def _lines(study: Study) -> Lines:
    """The points of each scope that has three weights, by weight."""
    tested = {
        effect[side]
        for effect in study.found("finding", metric=PRIMARY)
        for side in ("arm", "against")
        if effect["p"] is not None
    }
    runs, lines = study.by_arm(), {}
    for arms in curves_of(study).values():
        scope = role_of(runs[next(iter(arms.values()))][0]["science"])
        points = [
            {"scope": scope, "weight": weight, "tested": arm in tested} | at
            for weight, arm in arms.items()
            if (at := _at(runs[arm]))
        ]
        if scope in LEARNED and len(points) >= FEWEST_WEIGHTS:
            lines[scope] = points
    return lines


def _at(runs: Sequence[Row]) -> Spec:
    """Mean load and loss of an arm; empty where a run lacks one, or there is none."""
    values = [(run["metrics"].get(MAX_VIO, math.nan), nats(run)) for run in runs]
    x, y = np.mean(values, axis=0) if values else (0.0, 0.0)
    return {"x": rounded(x), "y": rounded(y)} if x > 0 and math.isfinite(x + y) else {}


def _domain(values: Sequence[float], axis: str) -> tuple[float, float]:
    """The range of an axis, with room for words around the data; x is logarithmic."""
    known = np.log(values) if axis == "x" else np.array(values)
    before, after = ROOM[axis]
    span = known.max() - known.min() or 1.0
    ends = known.min() - before * span, known.max() + after * span
    low, high = np.exp(ends) if axis == "x" else ends
    return float(low), float(high)


def _axes(domains: Mapping[str, tuple[float, float]]) -> Spec:
    """A layer that shows nothing and sets the axes."""
    low, high = domains["x"]
    x = quantitative(
        "x",
        ["how uneven the loads of experts are", "(MaxVio of validation; ← more even)"],
        scale={"type": "log", "nice": False, "domain": [low, high]},
        axis=AXIS
        | {"values": [at for at in TICKS if low < at < high]}
        | {"grid": False, "tickCount": len(TICKS)},
    )
    above = {"titleAngle": 0, "titleAlign": "left", "titleAnchor": "end", "titleX": -36}
    y = quantitative(
        "y",
        f"validation loss, {UNIT} (↓ better)",
        scale={"nice": False, "domain": [*domains["y"]]},
        axis=AXIS | above | {"titleY": -14, "format": ".2f"},
    )
    ends = [{"x": low, "y": domains["y"][0]}]
    mark = {"type": "point", "opacity": 0}
    return {"data": {"values": ends}, "mark": mark, "encoding": {"x": x, "y": y}}


def _drawn(lines: Lines) -> list[Spec]:
    """The lines, and their points above them."""
    below, above = [], []
    path = {"x": X, "y": Y, "order": {"field": "weight", "type": "quantitative"}}
    for scope, points in lines.items():
        data, shade = {"data": {"values": [*points]}}, SHADES[scope]
        fill = {"condition": {"test": "datum.tested", "value": shade}, "value": "white"}
        at = {"x": X, "y": Y, "stroke": {"value": shade}, "fill": fill}
        below.append({**data, "mark": "line", "encoding": {**path, "color": {"value": shade}}})
        above.append({**data, "mark": {"type": "point", "strokeWidth": 1.8}, "encoding": at})
    return below + above


def _equal_loads(study: Study, lines: Lines) -> list[Spec]:
    """A dashed line between the first and the last scope, where their loads are equal."""
    texts = {effect["text"] for effect in study.found("equal MaxVio")} - {""}
    if len(lines) < 2 or len(texts) != 1:
        return []
    at = float(texts.pop().split()[-1])
    ends = [_loss([*lines.values()][place], at) for place in (0, -1)]
    values = [{"x": at, "y": ends[0], "end": ends[1]}]
    mark = {"type": "rule", "strokeDash": [4, 3], "strokeWidth": 1.4}
    where = {"x": X, "y": Y, "y2": {"field": "end"}}
    return [{"data": {"values": values}, "mark": mark, "encoding": where}]


def _loss(points: Sequence[Spec], at: float) -> float:
    """Of a line, at a load."""
    loads, losses = zip(*sorted((point["x"], point["y"]) for point in points), strict=True)
    return float(np.interp(math.log(at), np.log(loads), losses))


def _told(study: Study, lines: Lines) -> list[Spec]:
    """What the last scope gains on the first, in words at the upper right."""
    layers, last = [], [*lines][-1]
    for kind, where in COMPARED.items():
        for effect in study.found(kind, arm=last):
            if effect["value"] is None or effect["low"] is None or effect["high"] is None:
                continue
            lower = effect["value"] < 0
            ends = (-effect["high"], -effect["low"]) if lower else (effect["low"], effect["high"])
            words = [
                where.format(effect["text"]),
                f"{last} is {abs(effect['value']):.4f} {'lower' if lower else 'higher'}",
                f"({as_percent(1 - effect['level'])}: {interval(*ends)})",
            ]
            layers += _text([{"text": words}], DARK, CORNER, dy=len(layers) // 2 * BLOCK)
    return layers


def _numbers(lines: Lines, domains: Mapping[str, tuple[float, float]]) -> list[Spec]:
    """The weights: beside the points of the first scope, and below those of the last.

    Where both points of a weight are at one place, its number stands once.
    """
    names, (low, high) = [*lines], domains["y"]
    first, last = (
        [{**point, "text": f"{point['weight']:g}"} for point in lines[name]]
        for name in (names[0], names[-1])
    )
    taken = {point["weight"]: point for point in first}
    apart = [
        point
        for point in last
        if (other := taken.get(point["weight"])) is None
        or abs(math.log(point["x"] / other["x"])) > NEAR_X
        or abs(point["y"] - other["y"]) > NEAR_Y * (high - low)
    ]
    first[-1]["text"] = f"{names[0]}, weight {first[-1]['text']}"
    layers = _text(first, INKS[names[0]], dx=9, dy=-4)
    return layers + _text(apart, INKS[names[-1]], align="right", dx=-5, dy=15)


def _names(lines: Lines) -> list[Spec]:
    """The names of scopes after the first: above a line, and below the last where it is long."""
    layers: list[Spec] = []
    for place, (scope, points) in enumerate(lines.items()):
        if 0 < place < len(lines) - 1:
            rows = [{**points[-1], "text": scope}]
            layers += _text(rows, INKS[scope], align="center", dy=-14)
        elif place:
            one, other = max(pairwise(points), key=_length)
            middle = {"x": math.sqrt(one["x"] * other["x"]), "y": (one["y"] + other["y"]) / 2}
            layers += _text([middle | {"text": scope}], INKS[scope], align="right", dx=-2, dy=13)
    return layers


def _length(part: tuple[Spec, Spec]) -> float:
    """Of a part of a line, along the axis of loads."""
    return abs(math.log(part[0]["x"] / part[1]["x"]))


def _text(rows: Sequence[Spec], ink: str, at: Spec = POINT, **place: Any) -> list[Spec]:
    """Words of each row's `text`, a line or more, on white, so that no line runs through them."""
    mark = {"type": "text", "align": "left", "fontSize": FONT, "lineHeight": LINE, **place}
    edge = {**mark, "stroke": "white", "strokeWidth": 4, "strokeJoin": "round"}
    words = {**at, "text": {"field": "text"}}
    data = {"data": {"values": [*rows]}}
    return [
        {**data, "mark": edge, "encoding": words},
        {**data, "mark": mark, "encoding": {**words, "color": {"value": ink}}},
    ]

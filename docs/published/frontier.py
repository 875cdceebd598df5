"""The picture of a study of weights: loss against load, a line a scope."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from benchmarks.headroom_size import LEARNED, role_of
from docs.published.cells import nats
from docs.published.labels import Place, Room, around, size_of
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
    "Means over seeds, a line a scope; numbers are `loss.balance`{}. Full points: the difference "
    "of scopes at this weight was tested. Hollow points, and what is in words: described. Dashed: "
    "where loads are equal."
)
BETWEEN = ", and those of the line between follow in the same order"
COMPARED = {"equal MaxVio": "At equal loads ({})", "best weight": "At the best weight of each"}
SHADES = {"micro": COLOURS[5], "shuffled": COLOURS[1], "global": COLOURS[3]}
INKS = SHADES | {"shuffled": "#8f6200", "global": "#00735a"}  # dark enough for words
SOFT, DARK = (THEMES["light"]["legend"][key] for key in ("titleColor", "labelColor"))
WIDTH, HEIGHT = 298, 262  # pixels of the panel
TICKS = [of * 10.0**power for power in range(-3, 3) for of in (1, 2, 5)]
ROOM = {"x": (0.25, 0.2), "y": (0.12, 0.04)}  # of the data's range, before and after it
NEAR, FAR, EDGE = 9.0, (math.inf, math.inf), 8  # pixels: points at one place, and a margin
X, Y = ({"field": name, "type": "quantitative"} for name in "xy")
POINT = {"x": X, "y": Y}
Lines = Mapping[str, Sequence[Spec]]  # points by scope, by weight


class Scale(NamedTuple):
    """The ranges of the axes; that of loads is logarithmic."""

    x: tuple[float, float]
    y: tuple[float, float]

    @classmethod
    def of(cls, points: Sequence[Spec]) -> "Scale":
        """With room for words around some points."""
        low, high = _wider([math.log(point["x"]) for point in points], *ROOM["x"])
        return cls((math.exp(low), math.exp(high)), _wider([of["y"] for of in points], *ROOM["y"]))

    def pixels(self, point: Spec) -> Place:
        """From the upper left of the panel."""
        (low, high), (bottom, top) = self.x, self.y
        right = math.log(point["x"] / low) / math.log(high / low)
        return WIDTH * right, HEIGHT * (top - point["y"]) / (top - bottom)

    def data(self, at: Place) -> Spec:
        """What `pixels` has at a place."""
        (low, high), (bottom, top) = self.x, self.y
        x = low * (high / low) ** (at[0] / WIDTH)
        return {"x": rounded(x), "y": rounded(top - at[1] / HEIGHT * (top - bottom))}


def _wider(values: Sequence[float], before: float, after: float) -> tuple[float, float]:
    span = max(values) - min(values) or 1.0
    return min(values) - before * span, max(values) + after * span


def frontier(study: Study) -> Plot | None:
    """Loss against load, a line a scope through its weights; None where no scope has three."""
    lines = _lines(study)
    if not lines:
        return None
    none = [at for at in [_at(study.by_arm().get("none", ()))] if at]
    scale = Scale.of([point for of in [*lines.values(), none] for point in of])
    cross = {"type": "point", "shape": "cross", "color": SOFT}
    layers = [
        _axes(scale),
        *_equal_loads(study, lines),
        *_drawn(lines),
        {"data": {"values": none}, "mark": cross, "encoding": POINT},
        *_words(study, lines, none, scale),
    ]
    panel = Panel("frontier", {"layer": layers}, width=WIDTH, height=HEIGHT)
    caption = OF_WEIGHTS.format(BETWEEN * (len(lines) > 2))
    return Plot("frontier", TITLE, caption, (panel,), arms=False)


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


def _axes(scale: Scale) -> Spec:
    """A layer that shows nothing and sets the axes."""
    low, high = scale.x
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
        scale={"nice": False, "domain": [*scale.y]},
        axis={key: of for key, of in AXIS.items() if key != "format"} | above | {"titleY": -14},
    )
    ends = [{"x": low, "y": scale.y[0]}]
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


def _words(study: Study, lines: Lines, none: Sequence[Spec], scale: Scale) -> list[Spec]:
    """What the last scope gains on the first, weights, and names, where they cover least."""
    room = Room(WIDTH, HEIGHT)
    for rule in _equal_loads(study, lines):
        [ends] = rule["data"]["values"]
        room.line(scale.pixels(ends), scale.pixels({**ends, "y": ends["end"]}))
    for points in [*lines.values(), none]:
        for point in points:
            room.point(*scale.pixels(point))
        for one, other in pairwise(points):
            room.line(scale.pixels(one), scale.pixels(other))
    rows: dict[str, list[Spec]] = {}

    def add(
        words: Sequence[str],
        ink: str,
        corners: Callable[[Place], Iterable[Place]],
        others: Iterable[Sequence[Spec]] = (),
    ) -> None:
        size = size_of(words, FONT, LINE)
        far = [part for of in others for part in pairwise(map(scale.pixels, of))]
        row = {**scale.data(room.place(size, corners(size), far)), "text": [*words]}
        rows.setdefault(ink, []).append(row)

    for point in none:
        add(["no balance"], SOFT, partial(around, scale.pixels(point)))
    told = _told(study, lines)
    wide = max((size_of(words, FONT, LINE)[0] for words in told), default=0.0)
    for words in told:
        add(words, DARK, partial(_sides, wide))
    for scope, points in _numbered(lines, scale).items():
        for point in points:
            add([point["text"]], INKS[scope], partial(around, scale.pixels(point)))
    for scope, points in reversed([*lines.items()]):
        corners = partial(_along, [scale.pixels(point) for point in points])
        add([scope], INKS[scope], corners, [lines[other] for other in lines if other != scope])
    return [layer for ink, words in rows.items() for layer in _text(words, ink)]


def _sides(wide: float, size: Place) -> Iterable[Place]:
    """Down the right side, for words of which the widest have this width; then down the left."""
    for x in (WIDTH - wide - EDGE, float(EDGE)):
        yield from ((x, float(y)) for y in range(EDGE, int(HEIGHT - size[1]), EDGE))


def _along(points: Sequence[Place], size: Place) -> list[Place]:
    """Beside the parts of a line, the longest first, and its last point."""
    parts = sorted(pairwise(points), key=lambda ends: -math.dist(*ends))
    middles = [((a + c) / 2, (b + d) / 2) for (a, b), (c, d) in parts]
    return [corner for at in [*middles, points[-1]] for corner in around(at, size)]


def _told(study: Study, lines: Lines) -> list[list[str]]:
    """What the last scope gains on the first, in words."""
    told, last = [], [*lines][-1]
    for kind, where in COMPARED.items():
        for effect in study.found(kind, arm=last):
            if effect["value"] is None or effect["low"] is None or effect["high"] is None:
                continue
            lower = effect["value"] < 0
            ends = (-effect["high"], -effect["low"]) if lower else (effect["low"], effect["high"])
            told.append(
                [
                    where.format(effect["text"]),
                    f"{last} is {abs(effect['value']):.4f} {'lower' if lower else 'higher'}",
                    f"({as_percent(1 - effect['level'])}: {interval(*ends)})",
                ]
            )
    return told


def _numbered(lines: Lines, scale: Scale) -> dict[str, list[Spec]]:
    """The points of the first and the last scope that have their weight beside them, as `text`.

    Where both points of a weight are at one place, its number stands once.
    """
    names = [*lines]
    first, last = (
        [{**point, "text": f"{point['weight']:g}"} for point in lines[name]]
        for name in (names[0], names[-1])
    )
    taken = {point["weight"]: scale.pixels(point) for point in first}
    first[-1]["text"] = f"weight {first[-1]['text']}"
    apart = [
        point
        for point in last
        if math.dist(scale.pixels(point), taken.get(point["weight"], FAR)) > NEAR
    ]
    return {names[0]: first} | ({names[-1]: apart} if len(names) > 1 else {})


def _text(rows: Sequence[Spec], ink: str) -> list[Spec]:
    """Words of each row's `text`, lines, on white, so that no line of the picture runs through."""
    mark = {"type": "text", "align": "left", "baseline": "top", "fontSize": FONT}
    mark["lineHeight"] = LINE
    edge = {**mark, "stroke": "white", "strokeWidth": 4, "strokeJoin": "round"}
    words = {**POINT, "text": {"field": "text"}}
    data = {"data": {"values": [*rows]}}
    return [
        {**data, "mark": edge, "encoding": words},
        {**data, "mark": mark, "encoding": {**words, "color": {"value": ink}}},
    ]

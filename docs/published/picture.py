"""Pictures of the page, from its CSVs: all tested effects, and the arms of each study."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from docs.published.cells import Studies, nats, tested
from docs.published.study import Row, Study
from moebench.plans import PRIMARY
from moebench.report.draw.chart import Panel, Plot
from moebench.report.draw.marks import bars, quantitative, zero_line
from moebench.report.draw.plots import paper_band
from moebench.report.draw.style import COLOURS, Spec, rounded
from moebench.report.infer.frontier import WEIGHT
from moebench.report.paper.findings import paper_gaps
from moebench.report.show.numbers import as_percent

TITLE = "Effects on validation loss"
CAPTION = (
    "Points and bars: differences of two arms, with the interval at the level that was tested. "
    "Grey: the paper's global less micro, at an assumed 3 to 5 bytes a token."
)
OF_ARMS = """\
In pictures of arms, points and bars are the differences of the table with its intervals, full where
they are tested and hollow where they are described; ticks are single seeds. Grey is the paper's
global less micro, at an assumed 3 to 5 bytes a token."""
SHADES = 64  # colours of a PNG, which a page of plots needs no more of
UNIT = "nats a byte"
INK = COLOURS[5]
WIDTH = 330  # pixels of a panel, which a phone shows as they are
SHOWN = 420  # pixels on a page that has room, where words are as large as its own
FONT = 13  # pixels
LINE, BAR = 16, 36  # pixels of a row: each line of its label, and what is below
AXIS = {
    "format": "~g",
    "labelFontSize": FONT,
    "titleFontSize": FONT,
    "tickCount": 5,
    "labelFlush": False,
}


def effects(studies: Studies) -> Plot | None:
    """Every difference that a finding is about and a study tests, a row each; None without any."""
    rows = [
        {
            "row": number,
            "label": [
                _less(effect["arm"], effect["against"]),
                f"{title}, {as_percent(1 - effect['level'])}",
            ],
            "tested": True,
            **{key: rounded(effect[key]) for key in ("value", "low", "high")},
        }
        for number, (title, effect) in enumerate(tested(studies, metric=PRIMARY, unit=UNIT))
    ]
    if not rows:
        return None
    title = f"{UNIT} (left of 0: the first arm is better)"
    return _plot("effects", TITLE, CAPTION, _forest(rows, [], [title], gap=True))


def arms(study: Study) -> Plot | None:
    """Each arm less the baseline, as in the study's table; None without differences."""
    rows, ticks = [], []
    for effect in study.found("difference", metric=PRIMARY):
        row = ", ".join(filter(None, (effect["arm"], effect["part"])))
        ends = {key: rounded(effect[key]) for key in ("value", "low", "high")}
        by_arm = study.by_arm(effect["part"])
        label = [_named(row, by_arm.get(effect["arm"], ()), study)]
        rows.append({"row": row, "label": label, "tested": effect["p"] is not None, **ends})
        base = {run["seed"]: nats(run) for run in by_arm.get(effect["against"], ())}
        ticks += [
            {"row": row, "value": rounded(nats(run) - base[run["seed"]])}
            for run in by_arm.get(effect["arm"], ())
            if run["seed"] in base
        ]
    if not rows:
        return None
    against = study.about.get("control", "")
    title = [f"{UNIT}, less {against}", f"(left of 0: better than {against})"]
    spec = _forest(rows, ticks, title, gap=against == "micro")
    return _plot("arms", f"Differences to {against}", OF_ARMS, spec)


def _less(arm: str, against: str) -> str:
    """What is compared; what both arms are called after their first word stands once."""
    (one, _, its), (other, _, same) = arm.partition(" "), against.partition(" ")
    return f"{one} less {other}, {its}" if its and its == same else f"{arm} less {against}"


def _named(arm: str, runs: Sequence[Row], study: Study) -> str:
    """An arm with its weight, where other arms of the study have another and its name has none."""
    weight = next((run["science"].get(WEIGHT) for run in runs), None)
    several = {run["science"].get(WEIGHT) for run in study.runs} - {None}
    if weight is None or len(several) < 2 or WEIGHT in arm:
        return arm
    return f"{arm} {WEIGHT}={weight:g}"


def shown(words: str, name: str) -> str:
    """A picture on the page: no wider than its words need, and as wide as a phone at most."""
    return f'<img src="img/{name}.png" alt="{words}" width="{SHOWN}">'


def save_png(path: Path, png: bytes) -> None:
    """Write a picture of few colours, a tenth of the size."""
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").quantize(SHADES).save(path, "PNG", optimize=True)


def _plot(name: str, title: str, caption: str, spec: Spec) -> Plot:
    rows = spec["data"]["values"]
    height = sum(LINE * len(row["label"]) + BAR for row in rows)
    return Plot(name, title, caption, (Panel(name, spec, width=WIDTH, height=height),), arms=False)


def _forest(
    rows: Sequence[Spec], ticks: Sequence[Spec], title: Sequence[str], *, gap: bool
) -> Spec:
    """A row an effect: its label, below it a point, a bar where it has an interval, and seeds.

    Args:
        rows: with as many lines of `label` each.
        title: lines of the axis.
        gap: whether to show where the paper's difference of global and micro lies.
    """
    y = {"field": "row", "type": "nominal", "sort": [row["row"] for row in rows], "axis": None}
    x = quantitative("value", list(title), axis=AXIS)
    color = {"value": INK}
    fill = {"condition": {"test": "datum.tested", "value": INK}, "value": "white"}
    gaps = paper_gaps(1.0) if gap else None
    down = LINE * len(rows[0]["label"]) / 2  # from the middle of a row to that below its label
    tick = {"type": "tick", "thickness": 1.2, "size": 7, "yOffset": down + 1, "opacity": 0.6}
    point = {"type": "point", "size": 80, "filled": True, "strokeWidth": 1.6, "yOffset": down - 9}
    at = {"y": y, "color": color}
    bar = bars("x", {**x, "field": "low"}, at)
    bar["mark"] |= {"yOffset": down - 9}
    return {
        "data": {"values": list(rows)},
        "layer": [
            *([paper_band(gaps)] if gaps else []),
            zero_line("x"),
            {"data": {"values": list(ticks)}, "mark": tick, "encoding": {"x": x, **at}},
            bar,
            {"mark": point, "encoding": {"x": x, "y": y, "stroke": color, "fill": fill}},
            *_labels(y, len(rows[0]["label"]), 2 - BAR / 2 - down),
        ],
    }


def _labels(y: Spec, lines: int, top: float) -> list[Spec]:
    """The lines of `label` at the left of each row, on white as wide as the picture.

    Args:
        lines: of each label.
        top: of the first line, from the middle of a row.
    """
    height = lines * LINE + 2
    white = {"type": "rect", "color": "white", "yOffset": top - 2 + height / 2, "height": height}
    wide = {"x": {"value": 0}, "x2": {"value": WIDTH}, "y": y}
    mark = {"type": "text", "align": "left", "baseline": "top", "fontSize": FONT}
    mark |= {"lineHeight": LINE, "yOffset": top}
    where = {"x": {"value": 2}, "y": y, "text": {"field": "label"}}
    return [
        {"mark": white, "encoding": wide},
        {"mark": mark, "encoding": where | {"color": {"value": "#1b1b1b"}}},
    ]

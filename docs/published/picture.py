"""Pictures of the page, from its CSVs: all tested effects, and the arms of each study."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from benchmarks.headroom_size import LEARNED, role_of
from docs.published.cells import Studies, nats, tested
from docs.published.study import Study
from moebench.plans import PRIMARY
from moebench.report.draw.chart import Panel, Plot
from moebench.report.draw.marks import bars, quantitative, zero_line
from moebench.report.draw.plots import LOG, LOG_AXIS, paper_band
from moebench.report.draw.style import COLOURS, Spec, rounded
from moebench.report.infer.frontier import FEWEST_WEIGHTS, MAX_VIO, WEIGHT, but_for_weight
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
OF_WEIGHTS = (
    "Means over seeds, a line a scope; numbers: `loss.balance`. Lower and further left is better."
)
SHADES = 64  # colours of a PNG, which a page of plots needs no more of
UNIT = "nats a byte"
INK = COLOURS[5]
WIDTH = 330  # pixels of a panel, which a phone shows as they are
FONT = 13  # pixels
LINE, BAR = 16, 36  # pixels of a row: each line of its label, and what is below
AXIS = {"format": "~g", "labelFontSize": FONT, "titleFontSize": FONT, "tickCount": 5}


def effects(studies: Studies) -> Plot | None:
    """Every difference that a finding is about and a study tests, a row each; None without any."""
    rows = [
        {
            "row": number,
            "label": [
                f"{effect['arm']} less {effect['against']}",
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
        rows.append({"row": row, "label": [row], "tested": effect["p"] is not None, **ends})
        by_arm = study.by_arm(effect["part"])
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


def frontier(study: Study) -> Plot | None:
    """Loss against load, a line a scope through its weights; None where no scope has three."""
    groups: dict[str, list[Spec]] = {}
    for runs in study.by_arm().values():
        science = runs[0]["science"]
        if (scope := role_of(science)) in LEARNED and WEIGHT in science:
            at = {"x": mean_of([run["metrics"].get(MAX_VIO) for run in runs])}
            at |= {"y": mean_of([nats(run) for run in runs])}
            point = {"weight": science[WEIGHT], "scope": scope, **at}
            groups.setdefault(but_for_weight(science), []).append(point)
    points = {of[0]["scope"]: of for of in groups.values() if len(of) >= FEWEST_WEIGHTS}
    if not points:
        return None
    rows = [row for of in points.values() for row in sorted(of, key=lambda row: row["weight"])]
    panel = Panel("frontier", _lines(rows, [*points]), width=WIDTH - 40, height=240)
    return Plot("frontier", "Loss against load", OF_WEIGHTS, (panel,), arms=False)


def mean_of(values: Sequence[float | None]) -> float | None:
    """Of numbers; None where one lacks."""
    known = [value for value in values if value is not None]
    return rounded(sum(known) / len(known)) if known and len(known) == len(values) else None


def _lines(rows: Sequence[Spec], scopes: Sequence[str]) -> Spec:
    """A line a scope, each point labelled by its weight, each line by its scope at the last one."""
    x = quantitative(
        "x", "MaxVio of the validation set (left: more even)", scale=LOG, axis=AXIS | LOG_AXIS
    )
    y = quantitative("y", UNIT, axis=AXIS)
    legend = {"title": None, "labelFontSize": FONT}
    kind = {"field": "scope", "type": "nominal", "legend": legend}
    color = {
        **kind,
        "scale": {"domain": list(scopes), "range": [COLOURS[5], COLOURS[1], COLOURS[3]]},
    }
    shape = {**kind, "scale": {"domain": list(scopes), "range": "symbol"}}
    order = {"field": "weight", "type": "quantitative"}
    # beside the point, where the labels of other scopes are not
    places = [{"dx": 7, "dy": -7}, {"dx": 8, "dy": 3}, {"dx": -6, "dy": 12, "align": "right"}]
    shown = {"field": "weight", "type": "quantitative", "format": "~g"}
    return {
        "data": {"values": list(rows)},
        "layer": [
            {"mark": "line", "encoding": {"x": x, "y": y, "color": color, "order": order}},
            {"mark": "point", "encoding": {"x": x, "y": y, "color": color, "shape": shape}},
            *(
                {
                    "transform": [{"filter": {"field": "scope", "equal": scope}}],
                    "mark": {"type": "text", "align": "left", "fontSize": FONT - 1, **place},
                    "encoding": {"x": x, "y": y, "text": shown, "color": color},
                }
                for scope, place in zip(scopes, places, strict=False)
            ),
        ],
    }


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
            *_labels(y, 2 - BAR / 2 - down),
        ],
    }


def _labels(y: Spec, top: float) -> list[Spec]:
    """The lines of `label` at the left of each row, on white, so that no line runs through them.

    Args:
        top: of the first line, from the middle of a row.
    """
    mark = {"type": "text", "align": "left", "baseline": "top", "fontSize": FONT}
    mark |= {"lineHeight": LINE, "yOffset": top}
    where = {"x": {"value": 2}, "y": y, "text": {"field": "label"}}
    edge = mark | {"stroke": "white", "strokeWidth": 4}
    ink = {"color": {"value": "#1b1b1b"}}
    return [{"mark": edge, "encoding": where}, {"mark": mark, "encoding": where | ink}]

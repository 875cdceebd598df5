"""Pictures of the page, from its CSVs: all tested effects, and the arms of each study."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from docs.published.cells import Studies, nats, tested
from docs.published.study import Study
from moebench.plans import PRIMARY
from moebench.report.draw.chart import Panel, Plot
from moebench.report.draw.marks import bars, quantitative, zero_line
from moebench.report.draw.plots import paper_band
from moebench.report.draw.style import COLOURS, Spec, rounded
from moebench.report.paper.findings import paper_gaps
from moebench.report.show.numbers import as_percent

TITLE = "Effects on validation loss"
CAPTION = (
    "Points and bars: differences of two arms, with the interval at the level that was tested. "
    "Grey: the paper's global less micro, at an assumed 3 to 5 bytes a token."
)
OF_ARMS = (
    "Points and bars: the differences of the table, with its intervals; full: tested, hollow: "
    "described. Ticks: single seeds."
)
SHADES = 64  # colours of a PNG, which a page of plots needs no more of
UNIT = "nats a byte"
INK = COLOURS[5]
ROW = 30  # pixels


def effects(studies: Studies) -> Plot | None:
    """Every difference that a finding is about and a study tests, a row each; None without any."""
    rows = [
        {
            "row": f"{title}, {as_percent(1 - effect['level'])}: "
            f"{effect['arm']} less {effect['against']}",
            "tested": True,
            **{key: rounded(effect[key]) for key in ("value", "low", "high")},
        }
        for title, effect in tested(studies, metric=PRIMARY, unit=UNIT)
    ]
    if not rows:
        return None
    title = f"{UNIT} (left of 0: the first arm is better)"
    return _plot("effects", TITLE, CAPTION, _forest(rows, [], title, gap=True), len(rows))


def arms(study: Study) -> Plot | None:
    """Each arm less the baseline, as in the study's table; None without differences."""
    rows, ticks = [], []
    for effect in study.found("difference", metric=PRIMARY):
        row = ", ".join(filter(None, (effect["arm"], effect["part"])))
        ends = {key: rounded(effect[key]) for key in ("value", "low", "high")}
        rows.append({"row": row, "tested": effect["p"] is not None, **ends})
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
    title = f"{UNIT}, less {against} (left of 0: better than {against})"
    spec = _forest(rows, ticks, title, gap=against == "micro")
    return _plot("arms", f"Differences to {against}", OF_ARMS, spec, len(rows))


def save_png(path: Path, png: bytes) -> None:
    """Write a picture of few colours, a tenth of the size."""
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").quantize(SHADES).save(path, "PNG", optimize=True)


def _plot(name: str, title: str, caption: str, spec: Spec, rows: int) -> Plot:
    panel = Panel(name, spec, "x", width=420, height=ROW * rows + 10)
    return Plot(name, title, caption, (panel,), arms=False)


def _forest(rows: Sequence[Spec], ticks: Sequence[Spec], title: str, *, gap: bool) -> Spec:
    """A row an effect: a point, a bar where it has an interval, and ticks of single seeds below.

    Args:
        gap: whether to show where the paper's difference of global and micro lies.
    """
    y = {"field": "row", "type": "nominal", "sort": [row["row"] for row in rows], "title": None}
    y |= {"axis": {"grid": False, "domain": False, "ticks": False, "labelLimit": 420}}
    x = quantitative("value", title, axis={"format": "~g"})
    color = {"value": INK}
    fill = {"condition": {"test": "datum.tested", "value": INK}, "value": "white"}
    gaps = paper_gaps(1.0) if gap else None
    tick = {"type": "tick", "thickness": 1.2, "size": 7, "yOffset": 9, "opacity": 0.6}
    point = {"type": "point", "size": 80, "filled": True, "strokeWidth": 1.6}
    return {
        "data": {"values": list(rows)},
        "layer": [
            *([paper_band(gaps)] if gaps else []),
            zero_line("x"),
            {
                "data": {"values": list(ticks)},
                "mark": tick,
                "encoding": {"x": x, "y": y, "color": color},
            },
            bars("x", {**x, "field": "low"}, {"y": y, "color": color}),
            {"mark": point, "encoding": {"x": x, "y": y, "stroke": color, "fill": fill}},
        ],
    }

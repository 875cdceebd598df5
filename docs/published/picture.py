"""The effects of all studies in one picture."""

import io
from pathlib import Path

from PIL import Image

from docs.published.cells import Studies, tested
from moebench.plans import PRIMARY
from moebench.report.draw.chart import Panel, Plot
from moebench.report.draw.marks import bars, quantitative, zero_line
from moebench.report.draw.plots import paper_band
from moebench.report.draw.style import Spec, rounded
from moebench.report.paper.findings import paper_gaps

TITLE = "Effects on validation loss"
CAPTION = (
    "Points and bars: differences of two arms, with the interval at the level that was tested. "
    "Grey: the paper's global less micro, at an assumed 3 to 5 bytes a token."
)
COLOURS = 64  # of a PNG, which a page of plots needs no more of
UNIT = "nats a byte"


def effects(studies: Studies) -> Plot | None:
    """Every difference that a finding is about and a study tests, a row each; None without any."""
    rows = [
        {
            "effect": f"{title}: {effect['arm']} less {effect['against']}",
            "study": title,
            **{key: rounded(effect[key]) for key in ("value", "low", "high")},
        }
        for title, effect in tested(studies, metric=PRIMARY, unit=UNIT)
    ]
    if not rows:
        return None
    panel = Panel("effects", _forest(rows), "x", width=420, height=20 * len(rows) + 20)
    return Plot("effects", TITLE, CAPTION, (panel,), arms=False)


def save_png(path: Path, png: bytes) -> None:
    """Write a picture of few colours, a tenth of the size."""
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").quantize(COLOURS).save(path, "PNG", optimize=True)


def _forest(rows: list[Spec]) -> Spec:
    """A row an effect: a point, and a bar where it has an interval."""
    y = {"field": "effect", "type": "nominal", "sort": None, "title": None}
    y |= {"axis": {"grid": False, "domain": False, "ticks": False, "labelLimit": 420}}
    x = quantitative("value", f"{UNIT} (left of 0: the first arm is better)", axis={"format": "~g"})
    color = {"field": "study", "type": "nominal", "legend": None}
    gaps = paper_gaps(1.0)
    return {
        "data": {"values": rows},
        "layer": [
            *([paper_band(gaps)] if gaps else []),
            zero_line("x"),
            bars("x", {**x, "field": "low"}, {"y": y, "color": color}),
            {"mark": {"type": "point"}, "encoding": {"x": x, "y": y, "color": color}},
        ],
    }

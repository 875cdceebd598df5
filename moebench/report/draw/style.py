"""How every plot looks, and how it is kept: few colours, a marker and a line style for each arm.

Colours are Okabe and Ito's, which the colour-blind tell apart; markers and line styles tell arms
apart without any colour. A plot is the same bytes for the same records: no date, no random ids.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from moebench.report.infer.arms import Arm, Table

# black, orange, sky blue, bluish green, vermilion, blue, reddish purple, grey
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#7F7F7F")
MARKERS = "osD^vP*X<>ph"
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 2)))
STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "figure.dpi": 100,
    "figure.figsize": (6.4, 4.0),
    "font.family": "DejaVu Sans",  # which comes with matplotlib, so that plots are alike anywhere
    "font.size": 9.5,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.fontsize": "small",
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 5.5,
    "savefig.bbox": "tight",
    "savefig.dpi": 160,
    "svg.fonttype": "path",
    "svg.hashsalt": "moebench",
    "text.parse_math": False,  # a name with dollars is no formula
}
NATS = "validation nats a token"
LONGEST = 32  # characters of a name in a plot


@dataclass(frozen=True)
class Plot:
    """A picture of one table.

    Attributes:
        name: of its files.
        title, caption: in words; a caption says what to look at and what bars and bands are.
        svg, png: the files.
    """

    name: str
    title: str
    caption: str
    svg: bytes
    png: bytes


@dataclass(frozen=True)
class Look:
    colour: str
    marker: str
    line: Any


def look(place: int) -> Look:
    """The colour, marker and line style of the arm in a place of a table, the baseline's first."""
    return Look(
        COLOURS[place % len(COLOURS)],
        MARKERS[place % len(MARKERS)],
        LINES[place % len(LINES)],
    )


def look_of(table: Table, arm: Arm) -> Look:
    return look(next(i for i, each in enumerate(table.arms) if each.name == arm.name))


@contextmanager
def drawing(
    rows: int = 1, columns: int = 1, size: tuple[float, float] | None = None
) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes [rows, columns], made without pyplot's state or a screen."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.subplots(rows, columns, squeeze=False)


def plot(name: str, title: str, caption: str, figure: Any) -> Plot:
    """What was drawn, as files; call it within `drawing`."""
    found = {}
    for form, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
        file = io.BytesIO()
        figure.savefig(file, format=form, metadata=metadata)
        found[form] = file.getvalue()
    return Plot(name, title, caption, found["svg"], found["png"])


def legend(figure: Any, axis: Any) -> None:
    """The arms of an axis, below the figure."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))


def short(name: str) -> str:
    """A name that leaves room for the plot; letters that its font lacks are shown by number."""
    name = "".join(each if ord(each) < 0x250 else f"\\u{ord(each):04x}" for each in name)
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 8]}...{name[-5:]}"


def errors(values: Sequence[tuple[float, float | None, float | None]]) -> list[list[float]]:
    """Lengths of error bars, [below, above], of (value, low, high); 0 without an interval."""
    below = [0.0 if low is None else value - low for value, low, _ in values]
    above = [0.0 if high is None else high - value for value, _, high in values]
    return [below, above]

"""The style of all plots, and how a figure becomes SVG and PNG.

Arms have a colour, a marker and a line style. Colours are Okabe and Ito's, which the colour-blind
can tell apart; markers and line styles tell arms apart without any colour. The same records give
the same bytes: a plot holds no date and no random ids.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from moebench.report.infer.arms import Arm, Table

# black, orange, sky blue, bluish green, vermilion, blue, reddish purple, grey
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#7F7F7F")
MARKERS = "osD^vP*X<>ph"
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 2)))
RC_PARAMS: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "figure.dpi": 100,
    "figure.figsize": (6.4, 4.0),
    "font.family": "DejaVu Sans",  # matplotlib brings it, so plots are the same on any machine
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
    "text.parse_math": False,  # a name with dollar signs is no formula
}
NATS = "validation nats a token"
LONGEST = 32  # characters of a name in a plot


@dataclass(frozen=True)
class Plot:
    """A picture of one table.

    Attributes:
        name: of its files.
        title, caption: a caption says what to look at, and what bars and bands are.
        svg: the content of the SVG file.
    """

    name: str
    title: str
    caption: str
    svg: bytes
    _figure: Any = field(repr=False, compare=False)

    @cached_property
    def png(self) -> bytes:
        """The content of the PNG file, which a page does not need."""
        return _saved(self._figure, "png", {"Software": None})


@dataclass(frozen=True)
class Style:
    colour: str
    marker: str
    line: Any


def style(place: int) -> Style:
    """The style of the arm at an index of a table; the baseline has index 0."""
    return Style(
        COLOURS[place % len(COLOURS)],
        MARKERS[place % len(MARKERS)],
        LINES[place % len(LINES)],
    )


def style_of(table: Table, arm: Arm) -> Style:
    return style([other.name for other in table.arms].index(arm.name))


@contextmanager
def drawing(
    rows: int = 1, columns: int = 1, size: tuple[float, float] | None = None
) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes [rows, columns], made without pyplot's state or a screen."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(RC_PARAMS):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.subplots(rows, columns, squeeze=False)


def plot(name: str, title: str, caption: str, figure: Any) -> Plot:
    """The figure as a plot."""
    return Plot(name, title, caption, _saved(figure, "svg", {"Date": None}), figure)


def _saved(figure: Any, form: str, metadata: dict[str, None]) -> bytes:
    import matplotlib as mpl

    file = io.BytesIO()
    with mpl.rc_context(RC_PARAMS):
        figure.savefig(file, format=form, metadata=metadata)
    return file.getvalue()


def legend(figure: Any, axis: Any) -> None:
    """Put the legend of an axis below the figure."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))


def short(name: str) -> str:
    """A name shortened for a plot; letters that the font lacks are shown by number."""
    name = "".join(c if ord(c) < 0x250 else f"\\u{ord(c):04x}" for c in name)
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 8]}...{name[-5:]}"


def errors(values: Sequence[tuple[float, float | None, float | None]]) -> list[list[float]]:
    """Lengths of error bars, [below, above], of (value, low, high); 0 without an interval."""
    below = [0.0 if low is None else value - low for value, low, _ in values]
    above = [0.0 if high is None else high - value for value, _, high in values]
    return [below, above]

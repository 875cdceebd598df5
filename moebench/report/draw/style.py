"""The look of all plots: an arm's colour, symbol and line, and a theme for light and for dark.

Colours are Okabe and Ito's, which the colour-blind can tell apart; symbols and lines tell arms
apart without any colour. A specification names no colour of an arm or of text: the theme, which is
Vega-Lite's `config`, holds them, so that one specification serves light, dark and paper.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from moebench.report.infer.arms import Arm, Table

Spec = dict[str, Any]  # a part of a Vega-Lite specification

# black, orange, sky blue, bluish green, vermilion, blue, reddish purple, grey
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#7F7F7F")
ON_DARK = ("#F2F2F2", "#E69F00", "#56B4E9", "#1FBF92", "#F0743E", "#8C9EFF", "#DE93BC", "#9A9A9A")
SYMBOLS = (
    *("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "triangle-right"),
    "triangle-left",
)
DASHES = ([1, 0], [6, 3], [8, 3, 2, 3], [2, 2], [12, 2, 2, 2, 2, 2], [1, 3])
MOST_ARMS = 16  # of one plot over the steps or one against another metric
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"


def theme(colours: Sequence[str], ink: str, soft: str, grid: str) -> Spec:
    """Vega-Lite's `config`.

    Args:
        colours: of the arms, in order.
        ink: of titles, soft: of labels, grid: of lines behind the data.
    """
    return {
        "background": None,
        "font": FONT,
        "view": {"stroke": None},
        "axis": {
            "labelColor": soft,
            "titleColor": soft,
            "gridColor": grid,
            "domainColor": soft,
            "tickColor": soft,
            "labelFontSize": 11,
            "titleFontSize": 11.5,
            "tickCount": 5,
            "titleFontWeight": "normal",
            "labelLimit": 170,
            "gridOpacity": 0.8,
        },
        "title": {
            "color": ink,
            "fontSize": 12.5,
            "anchor": "start",
            "frame": "group",
            "offset": 8,
            "subtitleColor": soft,
            "fontWeight": 600,
        },
        "legend": {
            "labelColor": ink,
            "titleColor": soft,
            "labelFontSize": 11.5,
            "labelLimit": 260,
            "titleFontSize": 11,
            "titleFontWeight": "normal",
            "symbolStrokeWidth": 2,
            "symbolOpacity": 1,
        },
        "aria": False,  # a page describes the plot as a whole; tables hold the numbers
        "text": {"color": soft},
        "rule": {"color": soft},
        "rect": {"color": grid},
        "point": {"filled": True, "size": 70, "opacity": 1},
        "line": {"strokeWidth": 1.8},
        "range": {
            "category": list(colours),
            "symbol": list(SYMBOLS),
            "diverging": ["#2166AC", "#8DBEDC", "#F7F7F7", "#F2A65A", "#B2450A"],
        },
    }


THEMES: Mapping[str, Spec] = {
    "light": theme(COLOURS, "#1b1b1b", "#555555", "#dddddd"),
    "dark": theme(ON_DARK, "#eeeeee", "#b4b4b4", "#3d3f45"),
}


def symbol(place: int) -> str:
    """Of an arm, by its number; each time that the colours begin again, they have other symbols."""
    return SYMBOLS[(place + place // len(COLOURS)) % len(SYMBOLS)]


def arm_scales(table: Table) -> dict[str, Spec]:
    """Encodings by which the arms of a table keep colour and symbol over all its plots."""
    names = [arm.name for arm in table.arms]
    symbols = [symbol(place) for place in range(len(names))]
    return {
        "color": _of_arm({"domain": names, "range": "category"}),
        "shape": _of_arm({"domain": names, "range": symbols}),
    }


def line_scales(table: Table) -> dict[str, Spec]:
    """The same of curves: colour and dashes."""
    names = [arm.name for arm in table.arms]
    dashes = [list(DASHES[place % len(DASHES)]) for place in range(len(names))]
    return {
        "color": arm_scales(table)["color"],
        "strokeDash": _of_arm({"domain": names, "range": dashes}),
    }


def _of_arm(scale: Spec) -> Spec:
    return {"field": "arm", "type": "nominal", "scale": scale, "legend": {"title": None}}


def drawn(table: Table) -> Sequence[Arm]:
    """The arms for which a plot has room: the baseline and those that follow it."""
    return table.arms[:MOST_ARMS]


def not_drawn(table: Table) -> str:
    """A sentence on the arms for which room lacks; "" where there are none."""
    more = len(table.arms) - MOST_ARMS
    return f" {more} more arm{'s are' if more > 1 else ' is'} not drawn." if more > 0 else ""


def rounded(value: float | None) -> float | None:
    """Six digits, which no eye tells from more, and which keep the page small."""
    return None if value is None or value != value else float(f"{value:.6g}")

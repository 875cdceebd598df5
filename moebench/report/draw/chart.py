"""A plot of one or more panels: interactive on the page, and as SVG and PNG by vl-convert.

vl-convert brings Vega and Vega-Lite in its wheel: no browser and no network is needed. The same
records give the same bytes.
"""

import base64
import copy
import html
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from moebench.report.draw.style import THEMES, Spec

WIDTH, HEIGHT = 290, 210  # of a panel in a picture, in pixels
PNG_SCALE = 2
HIDDEN = {"name": "hidden", "value": []}  # names of arms that a reader switched off
SHOWN = {"filter": "indexof(hidden, datum.arm) < 0"}


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        name: of the panel, unique within its plot.
        spec: a view in Vega-Lite, of one layer or more, without a size.
        zooms: the channels that a reader may zoom; "" for none.
        legend: whether its colours need a legend on the page, beside that of the arms.
        hover: layers that only the page has.
        width, height: in a picture; the page takes the width that it has.
    """

    name: str
    spec: Spec
    zooms: str = "xy"
    legend: bool = True
    hover: tuple[Spec, ...] = ()
    width: int = WIDTH
    height: int = HEIGHT

    def interactive(self) -> Spec:
        """The specification for the page, which has a legend of its own for the arms."""
        spec = copy.deepcopy(self.spec)
        spec["layer"] += copy.deepcopy(self.hover)
        if self.zooms:
            zoom = {"type": "interval", "encodings": list(self.zooms)}
            # not by the wheel alone, which scrolls the page
            zoom["zoom"] = "wheel![event.ctrlKey || event.metaKey || event.shiftKey]"
            layer = next(each for each in spec["layer"] if _has(each, self.zooms))
            layer["params"] = [{"name": "zoom", "select": zoom, "bind": "scales"}]
        for encoding in _encodings(spec):
            if "legend" in encoding and (encoding["field"] == "arm" or not self.legend):
                encoding["legend"] = None
        size = {"width": "container", "height": self.height}
        fit = {"type": "fit-x", "contains": "padding"}
        return {**spec, **size, "autosize": fit, "params": [HIDDEN]}

    def still(self) -> Spec:
        """The specification of a picture, without its theme."""
        return {**self.spec, "width": self.width, "height": self.height}


def _has(layer: Spec, channels: str) -> bool:
    """Whether a layer encodes fields by all of these channels."""
    return all("field" in layer["encoding"].get(channel, ()) for channel in channels)


def _encodings(part: Any) -> Iterator[Spec]:
    """All encodings of channels in a specification."""
    if isinstance(part, list):
        for item in part:
            yield from _encodings(item)
    elif isinstance(part, dict):
        yield from (each for each in part.get("encoding", {}).values() if isinstance(each, dict))
        for item in part.get("layer", ()):
            yield from _encodings(item)


def _numbered(svg: str) -> str:
    """The picture with its clips numbered from 0; vl-convert goes on from its last picture."""
    numbers: dict[str, int] = {}
    return re.sub(
        r'(id="|url\(#)(clip|gradient_)(\d+)',
        lambda found: f"{found[1]}{found[2]}{numbers.setdefault(found[3], len(numbers))}",
        svg,
    )


@dataclass(frozen=True)
class Plot:
    """A plot of one table.

    Attributes:
        name: of its files.
        title, caption: a caption says what to look at, and what bars and bands are.
        panels: in order.
        columns: panels side by side in a picture.
        arms: whether its arms have a legend, which switches them on and off on the page.
    """

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    columns: int = 3
    arms: bool = True

    @cached_property
    def svg(self) -> bytes:
        """The content of the SVG file."""
        import vl_convert

        return _numbered(vl_convert.vegalite_to_svg(self._picture)).encode()

    @cached_property
    def png(self) -> bytes:
        """The content of the PNG file."""
        import vl_convert

        return vl_convert.vegalite_to_png(self._picture, scale=PNG_SCALE)

    @property
    def image(self) -> str:
        """The SVG file as a URL."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg).decode()

    def _repr_html_(self) -> str:
        """What a notebook shows: the title, the picture and its caption."""
        title, caption = html.escape(self.title), html.escape(self.caption)
        return f'<h4>{title}</h4><img alt="{title}" src="{self.image}"/><p>{caption}</p>'

    @property
    def _picture(self) -> str:
        legend = {"orient": "bottom", "columns": 4, "direction": "horizontal", "offset": 14}
        light = THEMES["light"]
        return json.dumps(
            {
                "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
                "concat": [panel.still() for panel in self.panels],
                "columns": self.columns,
                "spacing": 28,
                "resolve": {"scale": {"color": "shared", "shape": "shared"}},
                "params": [HIDDEN],
                "config": {
                    **light,
                    "background": "white",
                    "legend": {**light["legend"], **legend},
                },
            }
        )


class Plots(tuple[Plot, ...]):
    """Plots that a notebook shows one below the other."""

    def _repr_html_(self) -> str:
        return "".join(plot._repr_html_() for plot in self)

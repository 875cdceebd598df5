"""Pictures of where tokens go: each cell is coloured by a count as a multiple of its even share.

In every picture, white is even, blue is less, red is more, and the darkest red is four times even
or more, so pictures can be compared. Experts are labelled by their true index.
"""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moebench.tensorboard.text import line

MAX_TIMES = 4  # the end of the scale, in multiples of even
SHADES = {0: "7fb2d9", 1: "ffffff", 2: "f08a62", MAX_TIMES: "7a0019"}  # multiple of even -> colour
NUM_SHADES = 129
# of images with one byte a pixel: the shades, then greys from black to white
PALETTE = np.concatenate(
    [
        np.stack(
            [
                np.interp(np.linspace(0, MAX_TIMES, NUM_SHADES), list(SHADES), part)
                for part in zip(*map(bytes.fromhex, SHADES.values()), strict=True)
            ],
            axis=1,
        ),
        np.linspace(0, 255, 256 - NUM_SHADES)[:, None].repeat(3, 1),
    ]
).astype(np.uint8)
BLACK, NOTHING, WHITE = NUM_SHADES, 205, 255  # in PALETTE
MAX_PIXELS = 1080  # of all cells together, in width or height
CARD = 350  # width in pixels that TensorBoard shows; it drops pixels of wider pictures
MAX_PANELS = 6  # layers side by side
GAP = -1  # the value of a cell between panels


class Picture(NamedTuple):
    """A PNG, and its size in pixels."""

    png: bytes
    height: int
    width: int


def of_routing(
    routing: Mapping[str, np.ndarray], domains: Sequence[str], about: str
) -> Iterator[tuple[str, Picture]]:
    """The pictures of an evaluation, each with the name that it has in every view.

    Args:
        routing: as `View.add` takes it.
        domains: their names; numbers stand for them where these are not as many.
        about: a second line below the titles.
    """
    counts = np.asarray(routing["counts"])
    if len(domains) != counts.shape[1]:
        domains = [str(index) for index in range(counts.shape[1])]
    # domains weigh the same, whatever their numbers of sequences
    total = counts.sum(-1, keepdims=True)
    shares = np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)
    yield "load/experts", loads(shares.sum(1), "Load of the experts", about)
    together = np.asarray(routing.get("coactivation", ()))
    if together.ndim == 3 and (together.sum(2) > together.diagonal(axis1=1, axis2=2)).any():
        picture = partners(together, counts, "Experts that meet in a token", about)
        yield "specialization/partners", picture
    for layer, of_layer in enumerate(counts):
        title = f"Layer {layer}: where a domain's tokens go"
        yield f"specialization/domain/{layer}", heatmap(of_layer, domains, title, about)


def heatmap(counts: np.ndarray, domains: Sequence[str], title: str, about: str = "") -> Picture:
    """The share of each domain's assignments that goes to each expert.

    Experts are sorted by the domain that uses them most, so specialisation shows as a diagonal.

    Args:
        counts: [domains, experts] assignments of one layer on the validation set.
    """
    order = _by_domain(counts)
    return _draw(
        _times_even(counts)[:, order],
        [line(name, 20) for name in domains],
        [str(expert) for expert in order],
        title,
        about,
        across="expert, by the domain that uses it most",
        along="domain",
        scale="share of the domain's assignments",
        even=1 / counts.shape[1],
    )


def loads(counts: np.ndarray, title: str, about: str = "") -> Picture:
    """The load of every expert of every layer.

    Args:
        counts: [layers, experts] assignments on the validation set.
    """
    layers, experts = counts.shape
    return _draw(
        _times_even(counts),
        [str(layer) for layer in range(layers)],
        [str(expert) for expert in range(experts)],
        title,
        about,
        across="expert",
        along="layer",
        scale="share of the layer's assignments",
        even=1 / experts,
    )


def partners(together: np.ndarray, counts: np.ndarray, title: str, about: str = "") -> Picture:
    """How often the experts of a token meet: N_ij / N_i over its value by chance, (k-1) / (E-1).

    Args:
        together: [layers, experts, experts] tokens that chose both experts; top_k is at least 2.
        counts: [layers, domains, experts], by which experts are sorted as in `heatmap`.
    """
    layers, experts, _ = together.shape
    panels = min(layers, MAX_PANELS, max(1, MAX_PIXELS // (experts + 1)))
    shown = np.unique(np.linspace(0, layers - 1, panels).round().astype(int))
    parts, names = [], []
    for layer in shown:
        order = _by_domain(counts[layer])
        panel = together[layer].astype(float)
        tokens = panel.diagonal().copy()
        np.fill_diagonal(panel, 0)
        # the mean over partners is the value by chance, whatever the router does
        times = _times_even(panel) * (experts - 1) / experts
        times[tokens == 0] = np.nan
        np.fill_diagonal(times, np.nan)
        parts += [times[order][:, order], np.full((experts, 1), GAP)]
        names += [f"layer {layer}" if at == experts // 2 else "" for at in range(experts)] + [""]
    return _draw(
        np.concatenate(parts[:-1], 1),
        [""] * experts,
        names[:-1],
        title,
        about,
        across="another expert of the same token (grey: itself)",
        along="expert, by its domain",
        scale="times as often as by chance",
        even=None,
    )


def _times_even(counts: np.ndarray) -> np.ndarray:
    """Each row's shares over the even share; nan for a row without assignments."""
    total = counts.sum(axis=1, keepdims=True) / counts.shape[1]
    return np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)


def _by_domain(counts: np.ndarray) -> np.ndarray:
    """The experts, sorted by the domain that uses each most."""
    known = np.nan_to_num(_times_even(counts))
    return np.lexsort((-known.max(axis=0), known.argmax(axis=0)))


class _Sheet:
    """A picture that is being drawn, one byte a pixel, an index into PALETTE."""

    def __init__(self, width: int, height: int) -> None:
        from PIL import Image, ImageDraw

        self.image = Image.new("L", (width, height), WHITE)
        self.pen = ImageDraw.Draw(self.image)

    def write(self, x: float, y: float, words: str, anchor: str = "mm", size: int = 11) -> None:
        self.pen.text((x, y), words, BLACK, _font(size), anchor)

    def write_upwards(self, x: int, top: int, bottom: int, words: str) -> None:
        """Write from bottom to top, in the middle between two heights."""
        from PIL import Image

        label = _Sheet(round(_font(11).getlength(words)), 16)
        label.write(0, 8, words, "lm")
        turned = label.image.transpose(Image.Transpose.ROTATE_90)
        self.image.paste(turned, (x, (top + bottom - turned.height) // 2))

    def paint(self, shades: np.ndarray, x: int, y: int) -> None:
        """Copy shades [height, width] to a place, with a black frame around them."""
        from PIL import Image

        self.image.paste(Image.fromarray(shades), (x, y))
        height, width = shades.shape
        self.pen.rectangle((x - 1, y - 1, x + width, y + height), outline=BLACK)

    def png(self) -> Picture:
        from PIL import Image

        picture, png = Image.frombytes("P", self.image.size, self.image.tobytes()), io.BytesIO()
        picture.putpalette(PALETTE.tobytes())
        picture.save(png, "PNG")
        return Picture(png.getvalue(), self.image.height, self.image.width)


def _draw(
    times: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    about: str,
    *,
    across: str,
    along: str,
    scale: str,
    even: float | None,
) -> Picture:
    """Draw cells [rows, columns] in multiples of even. Lengths are in pixels.

    Args:
        about: a second line below the title.
        across, along: what the columns and the rows are.
        scale: what the scale below the cells measures.
        even: the share that is even, for the labels of the scale; None labels it in multiples.
    """
    left, top = 30 + round(max(map(_font(11).getlength, rows))), 38
    cell_width = _cell_size(len(columns), CARD - left - 8, 2)
    cell_height = _cell_size(len(rows), 176, 14 if any(rows) else 2)
    right, bottom = left + cell_width * len(columns), top + cell_height * len(rows)
    sheet = _Sheet(max(CARD, right + 8), bottom + 90)
    sheet.write(4, 11, line(title, 50), "lm", 12)
    sheet.write(4, 26, line(about, 54), "lm")
    cells = np.where(np.isnan(times), NOTHING, _shade(np.nan_to_num(times)))
    cells[times == GAP] = WHITE
    cells = cells.repeat(cell_height, 0).repeat(cell_width, 1).astype(np.uint8)
    sheet.paint(cells, left, top)
    for at in _with_room(columns, cell_width, max(map(_font(10).getlength, columns)) + 2):
        sheet.write(left + (at + 0.5) * cell_width, bottom + 10, columns[at], size=10)
    for at in _with_room(rows, cell_height, 12):
        sheet.write(left - 5, top + (at + 0.5) * cell_height, rows[at], "rm")
    sheet.write(sheet.image.width / 2, bottom + 26, across)
    sheet.write_upwards(2, top, bottom, along)
    _draw_scale(sheet, bottom + 44, scale, even)
    return sheet.png()


def _draw_scale(sheet: _Sheet, y: int, scale: str, even: float | None) -> None:
    """Draw the scale of the shades over the whole width, and label it."""
    length = sheet.image.width - 60
    sheet.paint(_shade(np.linspace(0, MAX_TIMES, length))[None].repeat(10, 0), 30, y)
    for times in range(MAX_TIMES + 1):
        label = f"{times}" if even is None else f"{times * even:.1%}"
        if times == 1:
            label = "1: by chance" if even is None else f"even: 1/{round(1 / even)}"
        x = 30 + round(length * times / MAX_TIMES)
        sheet.pen.line((x, y - 1 if times == 1 else y + 10, x, y + 14), BLACK)
        sheet.write(x, y + 21, f"≥ {label}" if times == MAX_TIMES else label)
    sheet.write(sheet.image.width / 2, y + 36, scale)


def _cell_size(number: int, together: int, least: int) -> int:
    """The size of a cell: an even part of `together`, `least` at least, in MAX_PIXELS for all."""
    return max(1, min(max(together // number, least), MAX_PIXELS // number))


def _shade(times: np.ndarray) -> np.ndarray:
    """Multiples of even as indices of PALETTE."""
    return (np.clip(times / MAX_TIMES, 0, 1) * (NUM_SHADES - 1)).round().astype(np.uint8)


def _with_room(names: Sequence[str], distance: float, needed: float) -> list[int]:
    """Indices of the names to write, evenly thinned so that neighbours do not touch."""
    named = [at for at, name in enumerate(names) if name]
    if len(named) > 1:
        distance *= named[1] - named[0]
    return named[:: math.ceil(needed / distance)]


@cache
def _font(size: int) -> Any:
    """The font that matplotlib brings, found without matplotlib, which takes long to import."""
    from PIL import ImageFont

    spec, name = find_spec("matplotlib"), Path("mpl-data", "fonts", "ttf", "DejaVuSans.ttf")
    path = Path((spec and spec.origin) or "").parent / name
    if not path.is_file():  # some distributions keep it elsewhere
        from matplotlib import get_data_path

        path = Path(get_data_path(), *name.parts[1:])
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)

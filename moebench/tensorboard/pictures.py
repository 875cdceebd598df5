"""Pictures of where tokens go: every cell says how many times its even share something has.

White is even, blue is less, red is more, and the darkest red is four times even or beyond, in every
picture, so that pictures can be set side by side. Experts keep their true index.
"""

import io
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moebench.tensorboard.text import line

MOST = 4  # times even, the end of the scale
SHADES = {0: "7fb2d9", 1: "ffffff", 2: "f08a62", MOST: "7a0019"}  # times even -> colour
NUM_SHADES = 129
# Of an image of one byte a pixel: the shades, then greys from black to white.
PALETTE = np.concatenate(
    [
        np.stack(
            [
                np.interp(np.linspace(0, MOST, NUM_SHADES), list(SHADES), part)
                for part in zip(*map(bytes.fromhex, SHADES.values()), strict=True)
            ],
            axis=1,
        ),
        np.linspace(0, 255, 256 - NUM_SHADES)[:, None].repeat(3, 1),
    ]
).astype(np.uint8)
BLACK, NOTHING, WHITE = NUM_SHADES, 205, 255  # in PALETTE
MOST_PIXELS = 1080  # of all cells, across or up
CARD = 350  # pixels that TensorBoard gives a picture; it shrinks wider ones by leaving pixels out
MOST_PANELS = 6  # layers side by side
GAP = -1  # in place of times even: a cell between panels


class Picture(NamedTuple):
    """A PNG, and its size in pixels."""

    png: bytes
    height: int
    width: int


def heatmap(counts: np.ndarray, domains: Sequence[str], title: str, about: str = "") -> Picture:
    """The share of each domain's assignments that goes to each expert.

    Experts stand in the order of the domain that uses them most, so that specialisation shows as a
    diagonal.

    Args:
        counts: [domains, experts] assignments of one layer on the validation set.
    """
    order = _by_domain(counts)
    return _draw(
        _times_even(counts)[:, order],
        [line(name, 20) for name in domains],
        [str(each) for each in order],
        title,
        about,
        across="expert, by the domain that uses it most",
        along="domain",
        bar="share of the domain's assignments",
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
        [str(each) for each in range(layers)],
        [str(each) for each in range(experts)],
        title,
        about,
        across="expert",
        along="layer",
        bar="share of the layer's assignments",
        even=1 / experts,
    )


def partners(together: np.ndarray, counts: np.ndarray, title: str, about: str = "") -> Picture:
    """How often the experts of a token meet: N_ij / N_i over the (k - 1) / (E - 1) of chance.

    Args:
        together: [layers, experts, experts] tokens that chose both; top-2 or more.
        counts: [layers, domains, experts], which order the experts as in `heatmap`.
    """
    layers, experts, _ = together.shape
    panels = min(layers, MOST_PANELS, max(1, MOST_PIXELS // (experts + 1)))
    shown = np.unique(np.linspace(0, layers - 1, panels).round().astype(int))
    parts, names = [], []
    for layer in shown:
        order = _by_domain(counts[layer])
        panel = together[layer].astype(float)
        own = panel.diagonal().copy()
        np.fill_diagonal(panel, 0)
        # the mean over partners is that of chance, whatever the router does
        times = _times_even(panel) * (experts - 1) / experts
        times[own == 0] = np.nan
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
        bar="times as often as by chance",
        even=None,
    )


def _times_even(counts: np.ndarray) -> np.ndarray:
    """Each row's shares over the even one; nan for a row without assignments."""
    total = counts.sum(axis=1, keepdims=True) / counts.shape[1]
    return np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)


def _by_domain(counts: np.ndarray) -> np.ndarray:
    """Experts in the order of the domain that uses each most."""
    known = np.nan_to_num(_times_even(counts))
    return np.lexsort((-known.max(axis=0), known.argmax(axis=0)))


def _draw(
    times: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    about: str,
    *,
    across: str,
    along: str,
    bar: str,
    even: float | None,
) -> Picture:
    """Draw cells [rows, columns] in multiples of even.

    One byte a pixel, an index into PALETTE; lengths are in pixels.

    Args:
        about: a second line below the title.
        even: the share that is even, to label the scale by; None: it is labelled in multiples.
    """
    from PIL import Image, ImageDraw

    large, small, tiny = _font(12), _font(11), _font(10)
    left, top = 30 + round(max(map(small.getlength, rows))), 38
    cell_wide = _cell(len(columns), CARD - left - 8, 2)
    cell_high = _cell(len(rows), 176, 14 if any(rows) else 2)
    right, bottom = left + cell_wide * len(columns), top + cell_high * len(rows)
    size = (max(CARD, right + 8), bottom + 90)
    sheet = Image.new("L", size, WHITE)
    pen = ImageDraw.Draw(sheet)

    def write(x: float, y: float, words: str, anchor: str = "mm", font: Any = small) -> None:
        pen.text((x, y), words, BLACK, font, anchor)

    def paint(shades: np.ndarray, x: int, y: int) -> None:
        sheet.paste(Image.fromarray(shades), (x, y))
        high, wide = shades.shape
        pen.rectangle((x - 1, y - 1, x + wide, y + high), outline=BLACK)

    write(4, 11, line(title, 50), "lm", large)
    write(4, 26, line(about, 54), "lm")
    cells = np.where(np.isnan(times), NOTHING, _shade(np.nan_to_num(times)))
    cells[times == GAP] = WHITE
    paint(cells.repeat(cell_high, 0).repeat(cell_wide, 1).astype(np.uint8), left, top)
    for at in _with_room(columns, cell_wide, max(map(tiny.getlength, columns)) + 2):
        write(left + (at + 0.5) * cell_wide, bottom + 10, columns[at], font=tiny)
    for at in _with_room(rows, cell_high, 12):
        write(left - 5, top + (at + 0.5) * cell_high, rows[at], "rm")
    write(size[0] / 2, bottom + 26, across)
    upwards = Image.new("L", (round(small.getlength(along)), 16), WHITE)
    ImageDraw.Draw(upwards).text((0, 8), along, BLACK, small, "lm")
    upwards = upwards.transpose(Image.Transpose.ROTATE_90)
    sheet.paste(upwards, (2, (top + bottom - upwards.height) // 2))

    # the scale, below and all across
    long, y = size[0] - 60, bottom + 44
    paint(_shade(np.linspace(0, MOST, long))[None].repeat(10, 0), 30, y)
    for each in range(MOST + 1):
        label = f"{each}" if even is None else f"{each * even:.1%}"
        if each == 1:
            label = "1: by chance" if even is None else f"even: 1/{round(1 / even)}"
        x = 30 + round(long * each / MOST)
        pen.line((x, y - 1 if each == 1 else y + 10, x, y + 14), BLACK)
        write(x, y + 21, f"≥ {label}" if each == MOST else label)
    write(size[0] / 2, y + 36, bar)

    picture, png = Image.frombytes("P", size, sheet.tobytes()), io.BytesIO()
    picture.putpalette(PALETTE.tobytes())
    picture.save(png, "PNG")
    return Picture(png.getvalue(), size[1], size[0])


def _cell(number: int, together: int, least: int) -> int:
    """The size of each of some cells, that they have some pixels together."""
    return max(1, min(max(together // number, least), MOST_PIXELS // number))


def _shade(times: np.ndarray) -> np.ndarray:
    """Indices of the shades of PALETTE."""
    return (np.clip(times / MOST, 0, 1) * (NUM_SHADES - 1)).round().astype(np.uint8)


def _with_room(names: Sequence[str], distance: float, needed: float) -> list[int]:
    """Places of the names to write, evenly thinned where neighbours would touch."""
    named = [at for at, name in enumerate(names) if name]
    if len(named) > 1:
        distance *= named[1] - named[0]
    return named[:: math.ceil(needed / distance)]


@cache
def _font(size: int) -> Any:
    import matplotlib
    from PIL import ImageFont

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)

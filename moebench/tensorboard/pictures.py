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

from moebench.tensorboard.words import line

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
BLACK, NOTHING, WHITE = NUM_SHADES, 205, 255
WIDEST, HIGHEST = 1080, 960  # pixels of all cells
MOST_PANELS = 6  # layers side by side
GAP = -1  # in place of times even: a cell between panels


class Picture(NamedTuple):
    """A PNG, and its size in pixels."""

    png: bytes
    height: int
    width: int


def heatmap(counts: np.ndarray, domains: Sequence[str], title: str) -> Picture:
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
        across="expert, ordered by the domain that uses it most",
        along="domain",
        bar="share of the domain's assignments",
        even=1 / counts.shape[1],
    )


def loads(counts: np.ndarray, title: str) -> Picture:
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
        across="expert",
        along="layer",
        bar="share of the layer's assignments",
        even=1 / experts,
    )


def partners(together: np.ndarray, counts: np.ndarray, title: str) -> Picture:
    """How often the experts of a token meet: N_ij / N_i over the (k - 1) / (E - 1) of chance.

    Args:
        together: [layers, experts, experts] tokens that chose both; top-2 or more.
        counts: [layers, domains, experts], which order the experts as in `heatmap`.
    """
    layers, experts, _ = together.shape
    panels = min(layers, MOST_PANELS, max(1, WIDEST // (experts + 1)))
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
        across="another expert of the same token (grey: itself)",
        along="expert, in the order of its domains",
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
    *,
    across: str,
    along: str,
    bar: str,
    even: float | None,
) -> Picture:
    """Draw cells [rows, columns] in multiples of even.

    One byte a pixel, an index into PALETTE; lengths are in pixels.

    Args:
        even: the share that is even, to label the scale by; None: it is labelled in multiples.
    """
    from PIL import Image, ImageDraw

    large, small = _font(15), _font(13)
    labels = [f"{each}" if even is None else f"{each * even:.1%}" for each in range(MOST + 1)]
    labels[1] = "1: by chance" if even is None else f"even: 1/{round(1 / even)}"
    labels[MOST] = f"≥ {labels[MOST]}"

    wide = len(columns) * max(1, min(max(29, 408 // len(columns)), WIDEST // len(columns)))
    high = len(rows) * max(1, min(max(24, 252 // len(rows)), HIGHEST // len(rows)))
    left = 45 + round(max(map(small.getlength, rows)))
    top, right, bottom = 38, left + wide, 38 + high
    size = (right + 70 + round(max(map(small.getlength, labels))), bottom + 58)
    sheet = Image.new("L", size, WHITE)
    pen = ImageDraw.Draw(sheet)

    def write(x: float, y: float, words: str, anchor: str, font: Any = small) -> None:
        pen.text((x, y), words, BLACK, font, anchor)

    def write_upwards(x: float, y: float, words: str, font: Any) -> None:
        label = Image.new("L", (round(font.getlength(words)), 20), WHITE)
        ImageDraw.Draw(label).text((0, 10), words, BLACK, font, "lm")
        label = label.transpose(Image.Transpose.ROTATE_90)
        sheet.paste(label, (round(x - label.width / 2), round(y - label.height / 2)))

    cells = np.where(np.isnan(times), NOTHING, _shade(np.nan_to_num(times)))
    cells[times == GAP] = WHITE
    cells = cells.repeat(high // len(rows), 0).repeat(wide // len(columns), 1)
    sheet.paste(Image.fromarray(cells.astype(np.uint8)), (left, top))
    pen.rectangle((left - 1, top - 1, right, bottom), outline=BLACK)
    write(8, 18, line(title, size[0] // 9), "lm", large)
    write(left + wide / 2, bottom + 40, across, "mm", large)
    write_upwards(14, top + high / 2, along, large)
    font = small if len(list(filter(None, columns))) <= 32 else _font(10)
    for at in _with_room(columns, wide / len(columns), max(map(font.getlength, columns)) + 3):
        write(left + (at + 0.5) * wide / len(columns), bottom + 12, columns[at], "mm", font)
    for at in _with_room(rows, high / len(rows), 13):
        write(left - 8, top + (at + 0.5) * high / len(rows), rows[at], "rm")

    scale = _shade(np.linspace(MOST, 0, high))[:, None].repeat(17, 1)
    sheet.paste(Image.fromarray(scale), (right + 15, top))
    pen.rectangle((right + 14, top - 1, right + 32, bottom), outline=BLACK)
    for each, label in enumerate(labels):
        y = bottom - round(high * each / MOST)
        pen.line((right + (14 if each == 1 else 32), y, right + 37, y), BLACK)
        write(right + 41, y, label, "lm")
    write_upwards(size[0] - 14, top + high / 2, bar, small)

    picture, png = Image.frombytes("P", size, sheet.tobytes()), io.BytesIO()
    picture.putpalette(PALETTE.tobytes())
    picture.save(png, "PNG")
    return Picture(png.getvalue(), size[1], size[0])


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

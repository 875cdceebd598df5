"""Pictures of where tokens go: every cell says how many times its even share something has.

White is even, blue is less, red is more, and the darkest red is four times even or beyond, in every
picture, so that pictures can be set side by side. Experts keep their true index.
"""

import io
import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from moebench.tensorboard.words import line

SHADES = [(0.0, "#7fb2d9"), (0.25, "#ffffff"), (0.5, "#f08a62"), (1.0, "#7a0019")]
MOST = 4  # times even, the end of the scale
MOST_PANELS = 6  # layers side by side


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
    shown = np.unique(np.linspace(0, layers - 1, min(layers, MOST_PANELS)).round().astype(int))
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
        parts += [times[order][:, order], np.full((experts, 1), np.nan)]
        names += [f"layer {layer}" if at == experts // 2 else "" for at in range(experts)] + [""]
    return _draw(
        np.concatenate(parts[:-1], 1),
        [""] * experts,
        names[:-1],
        title,
        across="another expert of the same token",
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

    Args:
        even: the share that is even, to label the scale by; None: it is labelled in multiples.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    # Laid out by hand, in inches: matplotlib's own layout takes longer than all the drawing.
    left, bottom, right, top = 0.5 + 0.075 * max(map(len, rows)), 0.5, 1.2, 0.32
    wide = min(max(0.24 * len(columns), 3.4), 9.0)
    high = min(max(0.2 * len(rows), 2.1), 8.0)
    width, height = left + wide + right, bottom + high + top
    figure = Figure(figsize=(width, height), dpi=120)
    axes = figure.add_axes((left / width, bottom / height, wide / width, high / height))
    axes.set_facecolor("0.6")  # where nothing was assigned
    shades = LinearSegmentedColormap.from_list("times even", SHADES)
    image = axes.imshow(times, cmap=shades, vmin=0, vmax=MOST, aspect="auto")
    said = line(title, int(12 * width))
    figure.text(0.01, 1 - 0.22 / height, said, fontsize=9, parse_math=False)
    axes.set_xlabel(across, fontsize=9)
    axes.set_ylabel(along, fontsize=9)
    named = [at for at, name in enumerate(columns) if name]
    named = named[:: math.ceil(len(named) / 64)]
    axes.set_xticks(named, [columns[at] for at in named])
    axes.set_yticks([at for at, name in enumerate(rows) if name], list(filter(None, rows)))
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.tick_params(length=0, labelsize=8 if len(columns) <= 32 else 6)

    place = ((left + wide + 0.12) / width, bottom / height, 0.14 / width, high / height)
    scale = figure.colorbar(image, cax=figure.add_axes(place), extend="max")
    labels = [f"{each}" if even is None else f"{each * even:.1%}" for each in range(MOST + 1)]
    labels[1] = "1: by chance" if even is None else f"even: 1/{round(1 / even)}"
    scale.set_ticks(list(range(MOST + 1)), labels=labels, fontsize=8)
    scale.ax.axhline(1, color="black", linewidth=1)
    scale.set_label(bar, fontsize=8)

    canvas, png = FigureCanvasAgg(figure), io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes, which is no reason to warn.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        canvas.print_png(png)
    across_pixels, up_pixels = canvas.get_width_height()
    return Picture(png.getvalue(), up_pixels, across_pixels)

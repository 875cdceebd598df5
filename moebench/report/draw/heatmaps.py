"""Heatmaps of the experts that domains use, one an arm."""

import math
from collections.abc import Sequence

import numpy as np

from moebench.records import Record
from moebench.report.draw.style import Plot, drawing, plot, short
from moebench.report.infer.arms import Arm, Table
from moebench.report.infer.frontier import WEIGHT, but_for_weight
from moebench.report.read.frame import Frame

MOST_HEATMAPS = 6


def domains(table: Table, frame: Frame) -> Plot | None:
    """The share of a domain's choices that goes to an expert."""
    heatmaps = [
        (arm, shares)
        for arm in _unlike(table.arms)[:MOST_HEATMAPS]
        if (shares := _shares(arm, frame)) is not None
    ]
    if not heatmaps:
        return None
    first_arm, (first_shares, names, layer) = heatmaps[0]
    columns = min(3, len(heatmaps))
    rows = math.ceil(len(heatmaps) / columns)
    experts = first_shares.shape[1]
    size = (3.4 * columns + 1.2, rows * (0.8 + 0.19 * len(names)))
    with drawing(rows, columns, size) as (figure, axes):
        every = np.concatenate([shares.ravel() for _, (shares, _, _) in heatmaps])
        top = float(np.quantile(every, 0.98))  # else one collapsed arm would darken all others
        image = None
        for axis in axes.flat[len(heatmaps) :]:
            axis.axis("off")
        for axis, (arm, (shares, _, _)) in zip(axes.flat, heatmaps, strict=False):
            image = axis.imshow(shares, cmap="cividis", vmin=0, vmax=top, aspect="auto")
            axis.set_title(short(arm.name))
            axis.grid(False)
            axis.set_xticks([0, experts - 1], ["1", str(experts)])
            first = axis in axes[:, 0]
            axis.set_yticks(range(len(names)), [short(n) if first else "" for n in names])
            axis.tick_params(labelsize=7.5, length=0)
        figure.colorbar(
            image, ax=axes, label="share of the domain's choices", shrink=0.8, extend="max"
        )
        seed = first_arm.seeds[0]
        more = len(table.arms) - len(heatmaps)
        return plot(
            "domains",
            "Which experts a domain uses",
            f"Rows: domains. Columns: experts of router {layer + 1}, the middle one, ordered by "
            f"the domain that uses them most; seed {seed}. Even use is {1 / experts:.3f} "
            "everywhere; bright spots are experts that a domain has made its own."
            + (f" {more} more arms are not shown." if more > 0 else ""),
            figure,
        )


def _unlike(arms: Sequence[Arm]) -> list[Arm]:
    """The arms in order, but first one of those that differ in weight alone.

    That one has the baseline's weight if there is such an arm.
    """
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        groups.setdefault(but_for_weight(arm), []).append(arm)
    wanted = arms[0].science.get(WEIGHT)
    first = [
        next((arm for arm in alike if arm.science.get(WEIGHT) == wanted), alike[0])
        for alike in groups.values()
    ]
    return [*first, *(arm for arm in arms if arm not in first)]


def _shares(arm: Arm, frame: Frame) -> tuple[np.ndarray, list[str], int] | None:
    """Shares [domains, experts], domains and layer, of the arm's first seed at its last step."""
    row = next(row for row in frame.rows() if row["run"] == arm.runs[arm.seeds[0]])
    record = Record(row["path"])
    steps = record.routing_steps()
    if not steps:
        return None
    counts = record.routing(steps[-1]).get("counts")
    if counts is None or counts.ndim != 3 or counts.shape[1] != len(row["domains"]):
        return None
    layer = counts.shape[0] // 2
    shares = counts[layer] / np.maximum(counts[layer].sum(axis=1, keepdims=True), 1)
    order = np.lexsort((-shares.max(axis=0), shares.argmax(axis=0)))
    return shares[:, order], row["domains"], layer

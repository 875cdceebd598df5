"""Plot of the experts that each domain uses, an arm a heatmap."""

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
    """Which share of each domain's tokens goes to each expert, an arm a heatmap."""
    found = [
        (arm, share)
        for arm in _unlike(table.arms)[:MOST_HEATMAPS]
        if (share := _shares(arm, frame)) is not None
    ]
    if not found:
        return None
    names, layer = found[0][1][1], found[0][1][2]
    columns = min(3, len(found))
    rows = math.ceil(len(found) / columns)
    experts = found[0][1][0].shape[1]
    size = (3.4 * columns + 1.2, rows * (0.8 + 0.19 * len(names)))
    with drawing(rows, columns, size) as (figure, axes):
        every = np.concatenate([share.ravel() for _, (share, _, _) in found])
        top = float(np.quantile(every, 0.98))  # or one collapsed arm would darken all others
        image = None
        for axis in axes.flat[len(found) :]:
            axis.axis("off")
        for axis, (arm, (share, _, _)) in zip(axes.flat, found, strict=False):
            image = axis.imshow(share, cmap="cividis", vmin=0, vmax=top, aspect="auto")
            axis.set_title(short(arm.name))
            axis.grid(False)
            axis.set_xticks([0, experts - 1], ["1", str(experts)])
            first = axis in axes[:, 0]
            axis.set_yticks(range(len(names)), [short(n) if first else "" for n in names])
            axis.tick_params(labelsize=7.5, length=0)
        figure.colorbar(
            image, ax=axes, label="share of the domain's choices", shrink=0.8, extend="max"
        )
        seed = found[0][0].seeds[0]
        more = len(table.arms) - len(found)
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
    """The arms in order, but first one of each that differ in weight alone: of the baseline's."""
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        groups.setdefault(but_for_weight(arm), []).append(arm)
    wanted = arms[0].science.get(WEIGHT)
    first = [
        next((arm for arm in each if arm.science.get(WEIGHT) == wanted), each[0])
        for each in groups.values()
    ]
    return [*first, *(arm for arm in arms if arm not in first)]


def _shares(arm: Arm, frame: Frame) -> tuple[np.ndarray, list[str], int] | None:
    """Of the arm's first seed at its last evaluation: [domains, experts], domains and router."""
    row = next(row for row in frame.rows() if row["run"] == arm.runs[arm.seeds[0]])
    record = Record(row["path"])
    steps = record.routing_steps()
    if not steps:
        return None
    counts = record.routing(steps[-1]).get("counts")
    if counts is None or counts.ndim != 3 or counts.shape[1] != len(row["domains"]):
        return None
    layer = counts.shape[0] // 2
    share = counts[layer] / np.maximum(counts[layer].sum(axis=1, keepdims=True), 1)
    order = np.lexsort((-share.max(axis=0), share.argmax(axis=0)))
    return share[:, order], row["domains"], layer

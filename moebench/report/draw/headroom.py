"""Plots of headroom: how routing settles, and how arms come near the prescribed routers."""

import math
from typing import Any

import pandas as pd

from moebench.metrics.change import saturation
from moebench.report.draw.chart import Plot
from moebench.report.draw.curves import BANDS, over_steps
from moebench.report.draw.marks import curve
from moebench.report.draw.style import drawn, not_drawn
from moebench.report.infer.arms import BITS, Arm, Table
from moebench.report.infer.headroom import by_role, headroom
from moebench.report.read.frame import Frame
from moebench.report.read.routing import probes

PURITY = "specialization/purity"


def over_training(table: Table, frame: Frame) -> Plot | None:
    """Purity, saturation and the distances to T and TD, where there are such arms."""
    result = headroom(table)
    if result is None:
        return None
    values = over_steps(table, frame, [BITS, PURITY])
    settled = {arm.name: _settled(arm, frame) for arm in drawn(table)}
    panels = [
        curve("purity", "routing purity", table, values[PURITY]),
        curve("saturation", "experts that are those of the end (saturation)", table, settled),
    ]
    for role in ("T", "TD"):
        place = by_role(result.places, role)
        if place is None or place.arm.name not in values[BITS]:
            continue
        target = values[BITS][place.arm.name]
        # the first evaluation is of untrained models, far above all that follows
        behind = {
            arm: ((of_arm - target) * math.log(2)).dropna(how="all").iloc[1:]
            for arm, of_arm in values[BITS].items()
            if arm != place.arm.name
        }
        title = f"nats a byte, less {role} of the same seed"
        panels.append(curve(f"to-{role.lower()}", title, table, behind, zero=True))
    there = tuple(panel for panel in panels if panel is not None)
    if not there:
        return None
    return Plot(
        "over-training",
        "On the way to prescribed routing",
        "Purity: tokens of their expert's commonest domain. Saturation: on the same few "
        "sequences, and of use once it is high well before the end. An arm above 0 is behind the "
        f"prescribed router. {BANDS}{not_drawn(table)}",
        there,
        columns=2,
    )


def _settled(arm: Arm, frame: Frame) -> Any:
    """The saturation of an arm's routing, a row a step and a column a seed."""
    paths = {row["run"]: row["path"] for row in frame.rows()}
    columns = {}
    for seed, run in arm.runs.items():
        if recorded := probes(paths[run]):
            columns[seed] = pd.Series(saturation(recorded), dtype=float)
    return pd.DataFrame(columns)

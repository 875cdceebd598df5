"""Plots of headroom: how routing settles, and how arms come near the prescribed routers."""

import math
from typing import Any

import pandas as pd

from moebench.metrics.change import saturation
from moebench.records import Record
from moebench.report.draw.curves import band, by_seed, rows_of
from moebench.report.draw.style import Plot, drawing, legend, plot
from moebench.report.infer.arms import Arm, Table
from moebench.report.infer.headroom import BITS, by_role, headroom
from moebench.report.read.frame import Frame

PURITY = "specialization/purity"


def over_training(table: Table, frame: Frame) -> Plot | None:
    """Purity, saturation and the distances to T and TD by tokens, where there are such arms."""
    result = headroom(table)
    rows = rows_of(table, frame, [BITS, PURITY])
    if result is None or rows is None:
        return None
    prescribed = {role: by_role(result.places, role) for role in ("T", "TD")}
    targets = {role: place.arm for role, place in prescribed.items() if place is not None}
    nats = {arm.name: by_seed(rows, arm, BITS) * math.log(2) for arm in table.arms}
    with drawing(2, 2, (9.6, 6.8)) as (figure, axes):
        for arm in table.arms:
            band(axes[0, 0], table, arm, _by_tokens(by_seed(rows, arm, PURITY), arm))
            band(axes[0, 1], table, arm, _by_tokens(_settled(arm, frame), arm))
        for axis, (role, target) in zip(axes[1], targets.items(), strict=False):
            for arm in table.arms:
                # the first evaluation is of untrained models, far above all that follows
                distance = (nats[arm.name] - nats[target.name]).iloc[1:]
                band(axis, table, arm, _by_tokens(distance, arm))
            axis.set_title(f"nats a byte, less {role} ({target.name}) of the same seed")
        for axis in axes[1][len(targets) :]:
            axis.axis("off")
        axes[0, 0].set_title("routing purity")
        axes[0, 1].set_title("saturation: experts that are those of the end")
        for axis in axes.flat:
            axis.set_xlabel("million tokens")
        legend(figure, axes[1, 0])
        return plot(
            "over-training",
            "On the way to prescribed routing",
            "Purity: tokens of their expert's commonest domain. Saturation: on the same few "
            "sequences, and of use once it is high well before the end. Below: an arm above 0 is "
            "behind the prescribed router. Means over seeds; bands: 95 % intervals where there are "
            "three seeds and few arms.",
            figure,
        )


def _by_tokens(values: Any, arm: Arm) -> Any:
    """The same with millions of tokens for steps."""
    of_step = arm.science["global_bsz"] * arm.science["seq_len"] / 1e6
    return values.set_axis(values.index.to_numpy(float) * of_step)


def _settled(arm: Arm, frame: Frame) -> Any:
    """The saturation of an arm's routing, a row a step and a column a seed."""
    paths = {row["run"]: row["path"] for row in frame.rows()}
    columns = {}
    for seed, run in arm.runs.items():
        record = Record(paths[run])
        if probes := record.probes():
            columns[seed] = pd.Series(saturation(probes), dtype=float)
    return pd.DataFrame(columns)

"""The compute-equivalent gain of each arm in a grid, and for programs."""

from typing import Any

from moebench.report.infer.arms import Table
from moebench.report.infer.tokens import Gain
from moebench.report.show import numbers
from moebench.report.show.blocks import Cell, Grid
from moebench.report.show.numbers import estimate_cell
from moebench.report.show.sentences import control

BEYOND = "beyond the curve"


def grids(table: Table) -> list[Grid]:
    """A row an arm; nothing where the baseline has no curve."""
    if not table.gains:
        return []
    tokens = table.tokens[1] if table.tokens else None
    rows = []
    for arm in table.arms:
        if arm.name in table.gains:
            gain, compared = table.gains[arm.name], table.comparisons.arms[arm.name]
            alone = compared.paired or compared.adjusted
            saved = _share(gain, sure=alone.low is not None)
            rows.append([(arm.name, ""), estimate_cell(alone), saved, (_tokens(gain, tokens), "")])
    return [
        Grid(
            title="Compute-equivalent gain",
            caption=f"Differences in nats to {control(table)}, paired t, as tokens that are saved "
            f"(lost: below 0): the share of the last tokens over which {table.baseline}'s mean "
            "curve of validation nats fell by as much, between evaluations along a line. All lie "
            "on one schedule of the learning rate, so this is no scaling law. Beyond the curve: "
            "more than it fell. Nothing here is tested.",
            headers=["arm", "difference", "tokens saved", "in tokens"],
            rows=rows,
        )
    ]


def as_dict(gain: Gain | None, tokens: float | None) -> dict[str, Any] | None:
    """A gain as shares, and in tokens."""
    if gain is None:
        return None
    saved = None if gain.value is None or tokens is None else round(gain.value * tokens)
    return {**gain._asdict(), "tokens": saved}


def _share(gain: Gain, *, sure: bool) -> Cell:
    """A gain and its interval.

    Args:
        sure: whether the seeds allow an interval.
    """
    value, *ends = (
        BEYOND if each is None else _percent(each) for each in (gain.value, gain.low, gain.high)
    )
    return value, " to ".join(ends) if sure and gain.value is not None else ""


def _percent(share: float) -> str:
    return f"{100 * share + 0.0:.1f} %"


def _tokens(gain: Gain, tokens: float | None) -> str:
    if gain.value is None or tokens is None:
        return ""
    sign = "-" if gain.value < 0 else ""
    return sign + numbers.count(abs(round(gain.value * tokens)))

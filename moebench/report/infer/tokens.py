"""The compute-equivalent gain: what a difference in nats is worth in tokens of the same training.

The mean curve of the baseline's validation nats is inverted: over how many of its last tokens did
it fall by as much? An arm that is better by that much has saved them, one that is worse has lost
them. All evaluations lie on one schedule of the learning rate, whose decay makes the end steep; a
run of fewer tokens with a schedule of its own would end lower than the curve does there, so the
gain is that of the last tokens of these runs, and no scaling law.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from moebench.plans import PRIMARY
from moebench.report.infer.arms import Table

FEWEST = 3  # evaluations of a curve, that before the first step included

Curves = Mapping[str, Sequence[tuple[int, float]]]  # steps and nats of each run


class Gain(NamedTuple):
    """Of an arm, as shares of the baseline's tokens: above 0 saved, below 0 lost.

    Attributes:
        value, low, high: of the paired difference and the ends of its interval. None where the
            seeds allow none, or where the curve did not fall by so much.
        beyond: whether the difference itself is more than the curve fell.
    """

    value: float | None
    low: float | None
    high: float | None
    beyond: bool


def gains(table: Table, curves: Curves) -> dict[str, Gain]:
    """The gain of each arm that is compared; none without a curve of the baseline."""
    curve = mean_curve([curves.get(run, ()) for run in table.arms[0].runs.values()])
    if curve is None or table.primary != PRIMARY:
        return {}
    found = {}
    for name, comparison in table.comparisons.arms.items():
        alone = comparison.paired or comparison.adjusted
        value, low, high = (
            None if each is None else worth(*curve, each)
            for each in (alone.value, alone.high, alone.low)
        )
        found[name] = Gain(value, low, high, value is None)
    return found


def mean_curve(
    curves: Sequence[Sequence[tuple[int, float]]],
) -> tuple[np.ndarray, np.ndarray] | None:
    """Steps that all curves share, and mean nats there; None for fewer than three."""
    known = [dict(curve) for curve in curves]
    steps = sorted(set.intersection(*map(set, known))) if known else []
    if len(steps) < FEWEST:
        return None
    return np.array(steps, float), np.array([[of[step] for of in known] for step in steps]).mean(1)


def worth(steps: np.ndarray, nats: np.ndarray, difference: float) -> float | None:
    """The share of the tokens over whose end a curve fell by a difference; None if it never did.

    Between two evaluations the curve is a line. Where it is at that height more than once, the last
    time counts.

    Args:
        difference: in nats; below 0 for an arm that is better, which gives a share above 0.
    """
    target = nats[-1] + abs(difference)
    above = np.flatnonzero(nats >= target)
    if not len(above):
        return None
    ends = slice(above[-1], above[-1] + 2)  # of the line that crosses; one point at the curve's end
    at = float(np.interp(-target, -nats[ends], steps[ends]))
    return float(-np.sign(difference)) * (1 - at / steps[-1]) + 0.0

"""Contrasts of several arms: a trend along the arms, or two arms that are practically equal.

A contrast is a sum of arms' values with coefficients that sum to 0. It is computed seed by seed,
with Student's t over the seeds that have all of its arms, so that no other arm's variance matters.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from moebench.report.infer.statistics import FEWEST_SEEDS, LEVEL, Estimate

EQUAL_SHARE = 0.25  # of the gap of micro and global: arms that differ by less are called equal


class Contrast(NamedTuple):
    """The value of a contrast, and its standard error where the seeds allow one.

    Attributes:
        value: NaN where no seed has all of its arms.
        error: of the value; None below three seeds, and where the seeds do not vary.
        seeds: number of seeds that have all of its arms.
    """

    value: float
    error: float | None
    seeds: int

    def estimate(self, level: float = LEVEL) -> Estimate:
        """The value with a two-sided interval, and a p value for a true contrast of 0."""
        if self.error is None:
            return Estimate(self.value)
        from scipy.special import stdtrit

        half = float(stdtrit(self.seeds - 1, (1 + level) / 2)) * self.error
        p = 2 * self.tail(abs(self.value))
        return Estimate(self.value, self.value - half, self.value + half, p)

    def tail(self, value: float) -> float:
        """The probability of so large a value if the true contrast is 0; 1 without an error."""
        if self.error is None:
            return 1.0
        from scipy.special import stdtr

        return float(stdtr(self.seeds - 1, -value / self.error))


def contrast(values: np.ndarray, coefficients: np.ndarray) -> Contrast:
    """A contrast from one study.

    Args:
        values: [seeds, arms], NaN where a run is missing.
        coefficients: [arms], with a sum of 0.
    """
    involved = np.flatnonzero(coefficients)
    each = values[:, involved] @ coefficients[involved]
    each = each[~np.isnan(each)]
    seeds = len(each)
    mean = float(each.mean()) if seeds else math.nan
    error = float(each.std(ddof=1)) / math.sqrt(seeds) if seeds >= FEWEST_SEEDS else 0.0
    size = float(np.nanmax(np.abs(values), initial=0.0))
    return Contrast(mean, error if error > 1e-12 * size else None, seeds)


def slope(x: Sequence[float] | np.ndarray) -> np.ndarray:
    """Coefficients that give the least-squares slope of arms over x."""
    centred = np.asarray(x, float) - np.mean(x)
    return centred / (centred @ centred)


def bend(x: Sequence[float], at: float) -> np.ndarray | None:
    """Coefficients that give the slope above a point less the slope below it.

    Arms at the point count on both sides. None if a side has arms at fewer than two places.
    """
    places = np.asarray(x, float)
    coefficients = np.zeros(len(places))
    for side, sign in ((places >= at, 1), (places <= at, -1)):
        if len(np.unique(places[side])) < 2:
            return None
        coefficients[side] += sign * slope(places[side])
    return coefficients


class Equality(NamedTuple):
    """Whether two arms differ by less than a quarter of a gap that the same study measured.

    Each p value is the level at which a test still rejects.

    Attributes:
        difference: of the two arms.
        gap: of the other two.
        equal: p of the two contrasts gap / 4 +- difference being above 0, and the gap too: in at
            most 5 % of studies whose true difference is a quarter of the gap or more, all three
            are by chance.
        unequal: p of one of the two contrasts being below 0, and of a gap above 0.
    """

    difference: Contrast
    gap: Contrast
    equal: float
    unequal: float


def equality(values: np.ndarray, one: int, other: int, worse: int, better: int) -> Equality:
    """Test whether two arms differ by less than a quarter of the gap of two others.

    The pairs may share arms.

    Args:
        values: [seeds, arms], NaN where a run is missing.
        one, other: columns of the arms that may be equal.
        worse, better: columns of the arms with the gap.
    """
    arms = np.eye(values.shape[1])
    difference, gap = arms[one] - arms[other], arms[worse] - arms[better]
    rows = (difference, gap, EQUAL_SHARE * gap + difference, EQUAL_SHARE * gap - difference)
    d, g, above, below = (contrast(values, row) for row in rows)
    resolved = min(1.0, 2 * g.tail(g.value))
    sides = [(side.tail(side.value), side.tail(-side.value)) for side in (above, below)]
    equal = max(resolved, *(p for p, _ in sides))
    unequal = max(resolved, min(1.0, 2 * min(p for _, p in sides)))
    return Equality(d, g, equal, unequal)

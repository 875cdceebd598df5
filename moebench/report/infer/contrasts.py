"""Contrasts of several arms: a trend along the arms, or two arms that are practically equal.

A contrast is a sum of arms' effects with coefficients that sum to 0. If all of its arms are in the
pool of the block model (`statistics.py`), it has the model's variance and degrees of freedom.
Otherwise it is computed seed by seed, with Student's t over the seeds that have all its arms.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from moebench.report.infer.statistics import (
    FEWEST_SEEDS,
    LEVEL,
    BlockFit,
    Estimate,
    chosen_wrongly,
    odd_arms,
)

EQUAL_SHARE = 0.25  # of the gap of micro and global: arms that differ by less are called equal
EQUAL_LEVEL = 0.05


class Contrast(NamedTuple):
    """The value of a contrast, and its standard error where the seeds allow one.

    Attributes:
        value: NaN where no seed has all of its arms.
        error: of the value; None where the seeds do not give one.
        df: degrees of freedom of the error.
        seeds: number of seeds that have all of its arms.
        spent: share of the 5 % that choosing the pool takes (`statistics.chosen_wrongly`).
    """

    value: float
    error: float | None
    df: int
    seeds: int
    spent: float = 0.0

    def estimate(self) -> Estimate:
        """The value with a two-sided 95 % interval, and a p value for a true contrast of 0."""
        if self.error is None:
            return Estimate(self.value)
        from scipy.special import stdtrit

        half = float(stdtrit(self.df, (1 + LEVEL + self.spent) / 2)) * self.error
        p = min(1.0, 2 * self._tail(abs(self.value)) + self.spent)
        return Estimate(self.value, self.value - half, self.value + half, p)

    def tail(self, value: float) -> float:
        """An upper bound of the probability of so large a value if the true contrast is 0."""
        return min(1.0, self._tail(value) + self.spent)

    def _tail(self, value: float) -> float:
        from scipy.special import stdtr

        assert self.error is not None
        return float(stdtr(self.df, -value / self.error))


def contrasts(values: np.ndarray, coefficients: np.ndarray) -> list[Contrast]:
    """Contrasts from one study.

    Args:
        values: [seeds, arms], NaN where a run is missing.
        coefficients: [contrasts, arms], each row with a sum of 0.
    """
    involved = [int(i) for i in np.flatnonzero(np.abs(coefficients).sum(axis=0))]
    complete = values[~np.isnan(values[:, involved]).any(axis=1)]
    seeds = len(complete)
    base = involved[0]
    rest = [i for i in range(values.shape[1]) if i != base]
    shared = (~np.isnan(values[:, rest] - values[:, [base]])).sum(axis=0)
    pool = [base, *(i for i, n in zip(rest, shared, strict=True) if n >= 2)]
    spent = 0.0
    if seeds >= FEWEST_SEEDS and set(involved) <= set(pool):
        spent, odd = chosen_wrongly(len(pool)), odd_arms(values[:, pool])
        pool = [i for n, i in enumerate(pool) if n not in odd]
    if seeds < FEWEST_SEEDS or not set(involved) <= set(pool):
        return [_by_seed(complete @ row, seeds, spent) for row in coefficients]
    fit = BlockFit(values[:, pool])
    difference, covariance = fit.contrasts(0, range(1, len(pool)))
    flat = fit.rss <= fit.floor  # runs that do not vary give no estimate of chance
    result = []
    for row in coefficients[:, pool[1:]]:
        error = math.sqrt(float(row @ covariance @ row) * fit.rss / fit.df)
        value = float(row @ difference)
        result.append(Contrast(value, None if flat else error, fit.df, seeds, spent))
    return result


def _by_seed(values: np.ndarray, seeds: int, spent: float) -> Contrast:
    mean = float(values.mean()) if seeds else math.nan
    error = float(values.std(ddof=1)) / math.sqrt(seeds) if seeds >= FEWEST_SEEDS else 0.0
    return Contrast(mean, error if error > 1e-12 * abs(mean) else None, seeds - 1, seeds, spent)


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

    Attributes:
        difference: of the two arms, with its 95 % interval.
        gap: of the other two.
        equal: both contrasts gap / 4 +- difference are above 0, tested at 5 % each: in at most 5 %
            of studies whose true difference is a quarter of the gap or more, both are by chance.
        unequal: one of them is below 0, at 5 % for the two together.
    """

    difference: Contrast
    gap: Contrast
    equal: bool
    unequal: bool


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
    rows = [difference, gap, EQUAL_SHARE * gap + difference, EQUAL_SHARE * gap - difference]
    d, g, above, below = contrasts(values, np.array(rows))
    sides = (above, below)
    if any(side.error is None for side in sides):
        return Equality(d, g, False, False)
    return Equality(
        d,
        g,
        equal=all(side.tail(side.value) < EQUAL_LEVEL for side in sides),
        unequal=any(side.tail(-side.value) < EQUAL_LEVEL / 2 for side in sides),
    )

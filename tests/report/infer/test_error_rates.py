"""How often intervals and verdicts err, over simulated studies, through all that a report does.

Studies have 3 to 10 seeds, large seed effects, and arms of equal variance. What choosing the pool
adds to an error is measured by pairs: each study is judged once by what the report uses, and once
by the same test with every arm in the pool, whose error is exactly its level. The two differ in a
study of a thousand, so that their difference is known far better than either rate.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
from scipy import stats

from moebench.report.infer.contrasts import EQUAL_SHARE, contrasts, equality
from moebench.report.infer.dunnett import critical_value
from moebench.report.infer.statistics import BlockFit, Estimate, chosen_wrongly, compare, odd_arms

MANY = 20_000


class Rate(NamedTuple):
    """A share of studies: as counted, and by pairs with the test that chooses no pool.

    Attributes:
        counted: with a standard error of sqrt(rate (1 - rate) / n).
        plain: of the test that keeps all arms, counted.
        by_pairs, error: its level plus the mean difference of the two, and the standard error.
    """

    counted: float
    plain: float
    by_pairs: float
    error: float


def rate(ours: list[bool], plain: list[bool], level: float) -> Rate:
    extra = np.array(ours, float) - np.array(plain, float)
    error = float(extra.std(ddof=1)) / math.sqrt(len(extra))
    return Rate(float(np.mean(ours)), float(np.mean(plain)), level + float(extra.mean()), error)


def studies(n: int, effects: np.ndarray, sd: float) -> Iterator[np.ndarray]:
    """Values of studies, [seeds, arms]."""
    rng = np.random.default_rng(11)
    for i in range(n):
        block = 4 * rng.normal(size=(3 + i % 8, 1))
        yield block + effects + sd * rng.normal(size=(len(block), len(effects)))


def near(counted: float, level: float, n: int) -> bool:
    """Whether a rate is what a probability gives, up to 4 standard errors."""
    return abs(counted - level) < 4 * math.sqrt(level * (1 - level) / n)


def holds(interval: Estimate | None, truth: float = 0.0) -> bool:
    assert interval is not None
    assert interval.low is not None
    assert interval.high is not None
    return interval.low <= truth <= interval.high


class Coverage(NamedTuple):
    """Of arms that are all equal: shares of studies.

    Attributes:
        family: with an adjusted p below 5 %.
        intervals: in which an adjusted interval misses the truth.
        pooled, paired: in which one arm's own interval holds it: the block model's, paired t's.
        odd: in which an arm leaves the pool.
    """

    family: Rate
    intervals: float
    pooled: float
    paired: float
    odd: float


def coverage(n: int, arms: int) -> Coverage:
    names = [f"arm {i}" for i in range(arms)]
    one = np.eye(arms)[[1]] - np.eye(arms)[[0]]
    level = 0.05 - chosen_wrongly(arms)
    family, plain, missed, pooled, paired, odd = ([] for _ in range(6))
    for values in studies(n, np.zeros(arms), 1.0):
        found = compare(values, names, range(len(values)))
        each = [found.arms[name].adjusted for name in names[1:]]
        family.append(any(e.p is not None and e.p < 0.05 for e in each))
        missed.append(not all(map(holds, each)))
        plain.append(largest(values, level))
        odd.append(bool(found.odd))
        paired.append(holds(found.arms[names[1]].paired))
        pooled.append(holds(contrasts(values, one)[0].estimate()))
    means = (float(np.mean(each)) for each in (missed, pooled, paired, odd))
    return Coverage(rate(family, plain, level), *means)


def largest(values: np.ndarray, level: float) -> bool:
    """Whether Dunnett's test of all arms against the first rejects; exact at its level."""
    fit = BlockFit(values)
    difference, covariance = fit.contrasts(0, range(1, values.shape[1]))
    root = np.sqrt(np.diag(covariance))
    t = np.abs(difference) / root / math.sqrt(fit.rss / fit.df)
    return bool(t.max() > critical_value(covariance / np.outer(root, root), fit.df, 1 - level))


@pytest.mark.parametrize("arms", [2, 5])
def test_intervals_hold_the_truth_as_often_as_they_say(arms: int) -> None:
    found = coverage(300, arms)
    assert near(found.pooled, 0.95, 300)
    assert near(found.paired, 0.95, 300)
    assert near(found.family.counted, 0.05, 300)
    assert found.intervals == found.family.counted


@pytest.mark.slow
@pytest.mark.parametrize("arms", [3, 5, 8])
def test_the_table_errs_in_5_percent_of_20_000_studies_at_most(arms: int) -> None:
    found = coverage(MANY, arms)
    print(f"{arms} arms: {found}")
    assert found.pooled == pytest.approx(0.95, abs=0.005)
    assert found.paired == pytest.approx(0.95, abs=0.005)
    assert found.intervals == found.family.counted
    assert near(found.family.plain, 0.05 - chosen_wrongly(arms), MANY)
    assert near(found.family.counted, found.family.by_pairs, MANY)
    assert found.family.by_pairs + 3 * found.family.error <= 0.05
    assert found.odd < chosen_wrongly(arms) + 4 * math.sqrt(chosen_wrongly(arms) / MANY)


class Verdicts(NamedTuple):
    equal: Rate
    unequal: Rate


def judged(n: int, difference: float, gap: float = 4.0) -> Verdicts:
    """How often arms so far apart are called equal, and unequal; standard deviation 0.3."""
    effects = np.array([gap, 0, difference, 1])  # micro, global, shuffled, and one more arm
    spent = chosen_wrongly(len(effects))
    equal, unequal, plainly_equal, plainly_unequal = ([] for _ in range(4))
    for values in studies(n, effects, 0.3):
        found = equality(values, 2, 1, 0, 1)
        equal.append(found.equal)
        unequal.append(found.unequal)
        p = sides(values)
        plainly_equal.append(max(p) < 0.05 - spent)
        plainly_unequal.append(min(1 - each for each in p) < 0.025 - spent)
    return Verdicts(
        rate(equal, plainly_equal, 0.05 - spent), rate(unequal, plainly_unequal, 0.025 - spent)
    )


def sides(values: np.ndarray) -> list[float]:
    """p of gap / 4 +- difference being 0 against above, with all arms in the pool."""
    fit = BlockFit(values)
    difference, covariance = fit.contrasts(0, range(1, 4))  # to micro: global, shuffled, the other
    found = []
    for sign in (1, -1):
        row = np.array([-EQUAL_SHARE - sign, sign, 0.0])
        error = math.sqrt(row @ covariance @ row * fit.rss / fit.df)
        found.append(float(stats.t.sf(row @ difference / error, fit.df)))
    return found


@pytest.mark.parametrize("side", [-1, 1])
def test_arms_a_quarter_of_the_gap_apart_are_seldom_called_equal(side: int) -> None:
    found = judged(300, side * 1.0)
    assert near(found.equal.counted, 0.05, 300)
    assert near(found.unequal.counted, 0.025, 300)


@pytest.mark.slow
@pytest.mark.parametrize("side", [-1, 1])
def test_the_equality_test_errs_in_5_percent_of_20_000_studies_at_most(side: int) -> None:
    found = judged(MANY, side * 1.0)
    print(f"difference {side * 0.25:+} of the gap: {found}")
    for each, level in ((found.equal, 0.05), (found.unequal, 0.025)):
        assert near(each.plain, level - chosen_wrongly(4), MANY)
        assert near(each.counted, each.by_pairs, MANY)
        assert each.by_pairs + 3 * each.error <= level


def test_equal_arms_are_found_equal_and_distant_ones_unequal() -> None:
    found = judged(100, 0.0)
    assert found.equal.counted > 0.9
    assert found.unequal.counted == 0
    found = judged(100, 2.5)
    assert found.equal.counted == 0
    assert found.unequal.counted > 0.9


def test_the_pool_is_chosen_by_two_tests_where_there_are_three_arms() -> None:
    quiet = np.zeros((5, 2))
    assert chosen_wrongly(2) == 0
    assert odd_arms(quiet + np.random.default_rng(0).normal(size=(5, 2)) * [1, 1e6]) == {}
    assert chosen_wrongly(3) == pytest.approx(0.002)

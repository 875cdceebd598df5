"""How often intervals and verdicts err, over simulated studies.

Studies have 3 to 10 seeds, large seed effects, and arms of equal variance; `error_rates.py` among
the benchmarks has unequal ones. What choosing the pool adds to an error is measured by pairs: each
study is judged once by what the report uses, and once by the same test with every arm in the pool,
whose error is exactly its level. The two differ in a study of a thousand, so that their difference
is known far better than either rate.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
from scipy import stats

from benchmarks.error_rates import (
    RULES,
    contradiction_rate,
    draw,
    error_rate,
    power,
    ranking_p,
    secondary_error_rate,
)
from moebench.report.infer.contrasts import equality
from moebench.report.infer.decisions import excludes
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
        family: in which a simultaneous interval misses the truth.
        paired: in which one arm's own paired t holds it.
        odd: in which an arm leaves the pool.
    """

    family: Rate
    paired: float
    odd: float


def coverage(n: int, arms: int) -> Coverage:
    names = [f"arm {i}" for i in range(arms)]
    level = 0.05 - chosen_wrongly(arms)
    family, plain, paired, odd = ([] for _ in range(4))
    for values in studies(n, np.zeros(arms), 1.0):
        found = compare(values, names, range(len(values)))
        family.append(not all(holds(found.arms[name].adjusted) for name in names[1:]))
        plain.append(largest(values, level))
        odd.append(bool(found.odd))
        paired.append(holds(found.arms[names[1]].paired))
    return Coverage(rate(family, plain, level), float(np.mean(paired)), float(np.mean(odd)))


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
    assert near(found.paired, 0.95, 300)
    assert near(found.family.counted, 0.05, 300)


@pytest.mark.slow
@pytest.mark.parametrize("arms", [3, 5, 8])
def test_the_intervals_of_a_table_miss_in_5_percent_of_20_000_studies_at_most(arms: int) -> None:
    found = coverage(MANY, arms)
    print(f"{arms} arms: {found}")
    assert found.paired == pytest.approx(0.95, abs=0.005)
    assert near(found.family.plain, 0.05 - chosen_wrongly(arms), MANY)
    assert near(found.family.counted, found.family.by_pairs, MANY)
    assert found.family.by_pairs + 3 * found.family.error <= 0.05
    assert found.odd < chosen_wrongly(arms) + 4 * math.sqrt(chosen_wrongly(arms) / MANY)


DEVIATIONS = (0.1, 1.0, 3.0)  # of the baseline or of one arm, relative to the others'


@pytest.mark.parametrize("rule", ["order", "Holm"])
@pytest.mark.parametrize("arms", [2, 5])
def test_verdicts_err_in_5_percent_of_studies_at_most_whatever_the_variances(
    rule: str, arms: int
) -> None:
    for seeds in (6, 12):
        for shown in (0, 1):
            for place, times in [(place, times) for place in (0, 1) for times in DEVIATIONS]:
                deviations = [times if i == place else 1.0 for i in range(arms + 1)]
                found = error_rate(rule, 2000, seeds, deviations, shown)
                assert found < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 2000)
                if rule == "order":  # it uses the whole level
                    assert near(found, 0.05, 2000)


@pytest.mark.parametrize("correlation", [0.0, 0.95])
@pytest.mark.parametrize("shown", [False, True])
def test_secondary_verdicts_err_in_5_percent_of_studies_at_most(
    correlation: float, shown: bool
) -> None:
    for deviations in ([1.0] * 4, [3.0, 1, 1, 1], [1.0, 3, 1, 1]):
        found = secondary_error_rate(2000, 6, deviations, correlation, shown)
        assert 0.005 < found < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 2000)


def test_a_ranking_has_the_p_of_its_weakest_step() -> None:
    steps = np.random.default_rng(0).normal(size=(50, 7, 2)) + np.array([1.0, 0.5])
    for p, values in zip(ranking_p(steps), steps, strict=True):
        t = values.mean(axis=0) / values.std(axis=0, ddof=1) * math.sqrt(7)
        above = [2 * float(stats.t.sf(each, 6)) for each in t]
        below = [4 * float(stats.t.cdf(each, 6)) for each in t]
        assert p == pytest.approx(min(1, max(above), *below))


def test_a_pooled_test_errs_where_one_arm_varies_more() -> None:
    for deviations, low in (([1.0, 3, 1, 1, 1, 1], 0.065), ([3.0, 1, 1, 1, 1, 1], 0.09)):
        assert error_rate("Dunnett", 2000, 6, deviations) > low
        assert error_rate("order", 2000, 6, deviations) < 0.065


def test_a_twin_in_the_control_adds_power_and_no_error() -> None:
    for rule in RULES:
        alone, both = (power(rule, 2000, 6, 2, twin=twin)[0] for twin in (False, True))
        assert both > alone + 0.02
        assert error_rate(rule, 2000, 6, [math.sqrt(0.5), 1, 1]) < 0.065


@pytest.mark.parametrize("rule", ["order", "Holm"])
def test_findings_that_are_true_are_contradicted_in_5_percent_of_studies_at_most(rule: str) -> None:
    for deviations in ([1.0] * 6, [3.0, 1, 1, 1, 1, 1], [1.0, 3, 1, 1, 1, 1]):
        for size in (0.1, -0.1, 1.0):
            assert 0.002 < contradiction_rate(rule, 2000, 6, deviations, size) < 0.035


def test_intervals_that_share_no_level_exclude_a_true_size_too_often() -> None:
    difference = draw(np.random.default_rng(0), 2000, 6, [1.0] * 6) + 0.1
    value, error = difference.mean(axis=1), difference.std(axis=1, ddof=1) / math.sqrt(6)
    shared, alone = (
        np.mean(np.any(excludes(value, error, 6, 0.1, tests), axis=1)) for tests in (5, 1)
    )
    assert shared < 0.035
    assert alone > 0.07


class Equalities(NamedTuple):
    equal: float
    unequal: float


def judged(n: int, difference: float, gap: float = 4.0) -> Equalities:
    """How often arms so far apart are called equal, and unequal; standard deviation 0.3."""
    effects = np.array([gap, 0, difference])  # micro, global, shuffled
    found = [equality(values, 2, 1, 0, 1) for values in studies(n, effects, 0.3)]
    equal, unequal = (
        np.mean([p < 0.05 for p in of]) for of in zip(*(f[2:] for f in found), strict=True)
    )
    return Equalities(float(equal), float(unequal))


@pytest.mark.parametrize("side", [-1, 1])
def test_arms_a_quarter_of_the_gap_apart_are_seldom_called_equal(side: int) -> None:
    found = judged(600, side * 1.0)
    assert near(found.equal, 0.05, 600)
    assert near(found.unequal, 0.025, 600)


@pytest.mark.slow
@pytest.mark.parametrize("side", [-1, 1])
def test_the_equality_test_errs_as_stated_in_20_000_studies(side: int) -> None:
    found = judged(MANY, side * 1.0)
    print(f"difference {side * 0.25:+} of the gap: {found}")
    assert near(found.equal, 0.05, MANY)
    assert near(found.unequal, 0.025, MANY)


def test_equal_arms_are_found_equal_and_distant_ones_unequal() -> None:
    found = judged(100, 0.0)
    assert found.equal > 0.85
    assert found.unequal == 0
    found = judged(100, 2.5)
    assert found.equal == 0
    assert found.unequal > 0.85


def test_the_pool_is_chosen_by_two_tests_where_there_are_three_arms() -> None:
    quiet = np.zeros((5, 2))
    assert chosen_wrongly(2) == 0
    assert odd_arms(quiet + np.random.default_rng(0).normal(size=(5, 2)) * [1, 1e6]) == {}
    assert chosen_wrongly(3) == pytest.approx(0.002)

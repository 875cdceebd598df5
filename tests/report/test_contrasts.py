"""Trends and equality: against statsmodels and scipy, and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.api import OLS

from moebench.report.contrasts import Contrast, contrasts, equality, slope
from moebench.report.statistics import compare, mean_interval


def study(rng: np.random.Generator, seeds: int, effects: np.ndarray, sd: float = 1) -> np.ndarray:
    block = 4 * rng.normal(size=(seeds, 1))
    return block + effects + sd * rng.normal(size=(seeds, len(effects)))


@pytest.mark.parametrize("missing", [0, 2])
def test_a_trend_is_that_of_statsmodels(missing: int) -> None:
    rng = np.random.default_rng(missing)
    values = study(rng, 5, np.array([0, 0.4, 0.7, 1.5]))
    values.flat[[1, 14][:missing]] = np.nan
    x = [0.0, 1, 3, 5]
    seed, arm = np.nonzero(~np.isnan(values))
    design = np.zeros((len(seed), 9))
    design[np.arange(len(seed)), arm] = 1
    design[np.arange(len(seed)), 4 + seed] = 1
    weights = slope(x)
    fit = OLS(values[seed, arm], design[:, :-1]).fit()  # the last seed is the reference
    theirs = fit.t_test(np.concatenate([weights, np.zeros(4)])[None])
    (ours,) = contrasts(values, weights[None])
    assert ours.value == pytest.approx(theirs.effect.item())
    assert ours.error == pytest.approx(theirs.sd.item())
    estimate = ours.estimate()
    assert (estimate.low, estimate.high) == pytest.approx(tuple(theirs.conf_int()[0]))
    assert estimate.p == pytest.approx(theirs.pvalue.item())


def test_a_slope_is_that_of_a_line() -> None:
    x = [1.0, 2, 5, 9]
    y = np.array([3.0, 2.5, 2.4, 1])
    assert slope(x) @ y == pytest.approx(np.polyfit(x, y, 1)[0])


def test_a_contrast_with_an_arm_out_of_the_pool_is_students_t_over_seeds() -> None:
    rng = np.random.default_rng(1)
    values = study(rng, 8, np.zeros(5))
    values[:, 2] += 200 * rng.normal(size=8)
    weights = np.array([[1.0, 0, -1, 0, 0]])
    (ours,) = contrasts(values, weights)
    theirs = stats.ttest_rel(values[:, 0], values[:, 2])
    assert ours.estimate().p == pytest.approx(theirs.pvalue)
    assert ours.df == 7


@pytest.mark.parametrize("seeds", [0, 1, 2])
def test_below_three_seeds_there_is_no_error(seeds: int) -> None:
    values = study(np.random.default_rng(0), 3, np.zeros(3))
    values[seeds:, 2] = np.nan
    (found,) = contrasts(values, np.array([[0.5, 0.5, -1]]))
    assert (found.error, found.seeds) == (None, seeds)
    assert not any(equality(values, 2, 1, 0, 1)[2:])


def rates(n: int, difference: float, gap: float = 4.0) -> tuple[float, float]:
    """How often arms are called equal, and unequal; standard deviation 0.3, 3 to 10 seeds."""
    rng = np.random.default_rng(7)
    equal = unequal = 0
    for i in range(n):
        # micro, global, shuffled, and one more arm
        values = study(rng, 3 + i % 8, np.array([gap, 0, difference, 1]), sd=0.3)
        found = equality(values, 2, 1, 0, 1)
        equal += found.equal
        unequal += found.unequal
    return equal / n, unequal / n


def bound(level: float, n: int) -> float:
    """What a rate of that level stays below, up to 4 standard errors."""
    return level + 4 * math.sqrt(level * (1 - level) / n)


@pytest.mark.parametrize("side", [-1, 1])
def test_arms_a_quarter_of_the_gap_apart_are_seldom_called_equal(side: int) -> None:
    equal, unequal = rates(400, side * 1.0)
    assert equal < bound(0.05, 400)
    assert unequal < bound(0.05, 400)


@pytest.mark.slow
@pytest.mark.parametrize("side", [-1, 1])
def test_the_equality_test_errs_in_5_percent_of_20_000_studies_at_most(side: int) -> None:
    equal, unequal = rates(20_000, side * 1.0)
    print(f"difference {side * 0.25:+} of the gap: called equal {equal:.4f}, unequal {unequal:.4f}")
    assert 0.045 < equal < 0.055  # it is exact at the border
    assert unequal < 0.0275


def test_equal_arms_are_found_equal_and_distant_ones_unequal() -> None:
    equal, unequal = rates(100, 0.0)
    assert equal > 0.9
    assert unequal == 0
    equal, unequal = rates(100, 2.5)
    assert equal == 0
    assert unequal > 0.9


def test_a_contrast_of_two_arms_is_their_difference() -> None:
    values = study(np.random.default_rng(3), 4, np.zeros(2))
    (found,) = contrasts(values, np.array([[-1.0, 1]]))
    alone = mean_interval(values[:, 1] - values[:, 0])
    assert isinstance(found, Contrast)
    assert found.estimate().low == pytest.approx(alone.low)
    assert found.tail(0.0) == pytest.approx(0.5)


# Coverage of what the table prints, through all that it does (the pool, the adjustment)


def coverage(n: int, arms: int = 5) -> dict[str, float]:
    """Shares of studies of 3 to 10 seeds whose intervals hold the truth.

    `all`: every adjusted interval of a study; `pool`: a single one of the block model, unadjusted;
    `paired`: a single arm's own paired t; `alarm`: studies with an adjusted p below 5 %.
    """
    rng, hits = np.random.default_rng(11), dict.fromkeys(("all", "pool", "paired", "alarm"), 0)
    names = [f"arm {i}" for i in range(arms)]
    for i in range(n):
        seeds = 3 + i % 8
        values = study(rng, seeds, np.zeros(arms))
        found = compare(values, names, range(seeds)).arms
        each = [found[name].adjusted for name in names[1:]]
        hits["all"] += all((e.low or 0) <= 0 <= (e.high or 0) for e in each)
        hits["alarm"] += any((1 if e.p is None else e.p) < 0.05 for e in each)
        paired = found[names[1]].paired
        assert paired is not None
        hits["paired"] += (paired.low or 0) <= 0 <= (paired.high or 0)
        (pooled,) = contrasts(values, np.array([[-1.0, 1] + [0] * (arms - 2)]))
        estimate = pooled.estimate()
        hits["pool"] += (estimate.low or 0) <= 0 <= (estimate.high or 0)
    return {key: hit / n for key, hit in hits.items()}


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    found = coverage(300)
    for key in ("all", "pool", "paired"):
        assert found[key] > 1 - bound(0.05, 300)
    assert found["alarm"] < bound(0.05, 300)
    assert found["alarm"] == pytest.approx(1 - found["all"])


@pytest.mark.slow
def test_intervals_of_20_000_studies_hold_the_truth_in_95_percent() -> None:
    found = coverage(20_000)
    print({key: round(value, 4) for key, value in found.items()})
    assert found["pool"] == pytest.approx(0.95, abs=0.005)
    assert found["paired"] == pytest.approx(0.95, abs=0.005)
    assert found["all"] == pytest.approx(0.95, abs=0.005)
    assert found["alarm"] <= 0.05 + 0.005

"""The block model against least squares spelled out, against scipy, and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from moebench.report.infer.dunnett import critical_value
from moebench.report.infer.statistics import (
    BlockFit,
    Comparisons,
    chosen_wrongly,
    compare,
    mean_interval,
    odd_arms,
    seeds_needed,
)

NAMES = ("micro", "global", "shuffled", "none", "sequence", "domain")


def study(
    arms: int, seeds: int, rng: np.random.Generator, sd: tuple[float, ...] | float = 0.005
) -> np.ndarray:
    return 1.6 + rng.normal(size=(seeds, 1)) * 0.02 + rng.normal(size=(seeds, arms)) * sd


def compared(values: np.ndarray) -> Comparisons:
    return compare(values, NAMES[: values.shape[1]], range(len(values)))


def literal(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, int]:
    """Effects, their covariance over the variance, residual sum of squares and df, by dummies."""
    seed, arm = np.nonzero(~np.isnan(values))
    design = np.zeros((len(seed), sum(values.shape)))
    design[np.arange(len(seed)), arm] = 1
    design[np.arange(len(seed)), values.shape[1] + seed] = 1
    y = values[seed, arm]
    inverse = np.linalg.pinv(design)
    residual = y - design @ inverse @ y
    arms = values.shape[1]
    df = len(y) - np.linalg.matrix_rank(design)
    return (
        (inverse @ y)[:arms],
        (inverse @ inverse.T)[:arms, :arms],
        float(residual @ residual),
        int(df),
    )


@pytest.mark.parametrize("missing", [0, 2, 5])
def test_fit_is_least_squares_with_any_runs_missing(missing: int) -> None:
    rng = np.random.default_rng(missing)
    values = study(4, 5, rng)
    values.flat[rng.choice(values.size, missing, replace=False)] = np.nan
    effect, covariance, rss, df = literal(values)
    contrast = np.array([[-1.0, 1, 0, 0], [-1, 0, 1, 0], [-1, 0, 0, 1]])
    fit, rest = BlockFit(values), literal(values[:, [0, 1, 3]])
    difference, scaled = fit.contrasts(0, [1, 2, 3])
    assert difference == pytest.approx(contrast @ effect, abs=1e-12)
    assert scaled == pytest.approx(contrast @ covariance @ contrast.T, abs=1e-9)
    assert (fit.rss, fit.df) == (pytest.approx(rss), df)
    assert [each[2] for each in fit.without_each()] == [pytest.approx(rest[2]), rest[3]]


def test_balanced_fit_is_the_two_way_analysis_of_variance() -> None:
    values = study(3, 5, np.random.default_rng(0))
    row, column = values.mean(axis=1, keepdims=True), values.mean(axis=0)
    interaction = ((values - row - column + values.mean()) ** 2).sum() / (4 * 2)
    found = compared(values)
    assert found.sd == pytest.approx(math.sqrt(interaction))
    assert (found.df, found.family) == (8, 2)
    each = found.arms["global"].adjusted
    assert each.value == pytest.approx(column[1] - column[0])
    # Half an interval is so many errors as Dunnett's value for 2 comparisons and 8 df, which is
    # published as 2.67 at 5 %; choosing the pool has spent 0.2 % of it.
    equal = np.array([[1, 0.5], [0.5, 1]])
    assert critical_value(equal, found.df, 0.95) == pytest.approx(2.67, abs=5e-3)
    t = critical_value(equal, found.df, 0.95 + chosen_wrongly(3))
    assert each.high is not None
    half = each.high - each.value
    assert half == pytest.approx(t * math.sqrt(2 * interaction / 5))


def test_paired_t_is_scipys() -> None:
    values = study(3, 4, np.random.default_rng(1))
    theirs = stats.ttest_rel(values[:, 2], values[:, 0])
    ours = compared(values).arms["shuffled"].paired
    assert ours is not None
    assert ours.p == pytest.approx(theirs.pvalue)
    interval = theirs.confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high))


def test_two_arms_are_a_paired_t() -> None:
    comparison = compared(study(2, 4, np.random.default_rng(2))).arms["global"]
    adjusted, paired = comparison.adjusted, comparison.paired
    assert paired is not None
    pairs = zip(
        (adjusted.value, adjusted.low, adjusted.high),
        (paired.value, paired.low, paired.high),
        strict=True,
    )
    for ours, theirs in pairs:
        assert ours == pytest.approx(theirs, rel=1e-4)


def within(hits: int, n: int, level: float) -> bool:
    """Whether a count is what a proportion gives, up to 4 standard errors."""
    return abs(hits / n - level) < 4 * math.sqrt(level * (1 - level) / n)


@pytest.mark.parametrize("missing", [(), ((0, 1), (2, 2), (4, 3))])
def test_intervals_hold_for_all_arms_together(missing: tuple[tuple[int, int], ...]) -> None:
    """Simultaneous coverage over 2,000 studies, by the parts of which `compare` is made."""
    rng, n, hits = np.random.default_rng(4), 2000, 0
    truth = np.array([0.0, -0.01, 0.003, 0.02])
    for _ in range(n):
        values = study(4, 5, rng) + truth
        for at in missing:
            values[at] = np.nan
        fit = BlockFit(values)
        difference, covariance = fit.contrasts(0, [1, 2, 3])
        root = np.sqrt(np.diag(covariance))
        c = critical_value(covariance / np.outer(root, root), fit.df, 0.95)
        half = c * root * math.sqrt(fit.rss / fit.df)
        hits += bool(np.all(np.abs(difference - truth[1:]) <= half))
    assert within(hits, n, 0.95)


def test_equal_arms_stay_in_the_pool() -> None:
    rng = np.random.default_rng(5)
    odd = [bool(compared(study(5, 3, rng)).odd) for _ in range(300)]  # about 0.2 % leave by chance
    assert np.mean(odd) < 0.04


def test_a_collapsed_arm_leaves_the_pool_and_gets_its_own_paired_t() -> None:
    values = study(4, 5, np.random.default_rng(6), (0.005, 0.005, 0.005, 0.5))
    found, alone = compared(values), compared(values[:, :3])
    assert found.odd == {"none": "more"}
    assert found.sd == pytest.approx(alone.sd)
    assert found.family == 3
    collapsed = found.arms["none"]
    assert collapsed.left_pool == "more"
    theirs = stats.ttest_rel(values[:, 3], values[:, 0])
    spent = chosen_wrongly(4)
    interval = theirs.confidence_interval(1 - (0.05 - spent) / 3)
    assert (collapsed.adjusted.low, collapsed.adjusted.high) == pytest.approx(
        (interval.low, interval.high)
    )


def test_two_collapsed_arms_do_not_hide_each_other() -> None:
    values = study(5, 5, np.random.default_rng(7), (0.005, 0.3, 0.005, 0.3, 0.005))
    assert set(compared(values).odd) == {"global", "none"}


def test_an_arm_like_the_baseline_leaves_the_pool() -> None:
    rng = np.random.default_rng(8)
    values = study(4, 5, rng)
    values[:, 3] = values[:, 0] + rng.normal(size=5) * 1e-6
    assert compared(values).odd == {"none": "less"}


@pytest.mark.parametrize("sd", [1e-6, 0.005, 0.1])
def test_a_twin_changes_no_other_comparison(sd: float) -> None:
    rng = np.random.default_rng(8)
    values = study(3, 6, rng)
    twin = values[:, :1] + sd * rng.normal(size=(6, 1))
    before = compared(values)
    found = compare(np.hstack([values, twin]), [*NAMES[:3], "twin"], range(6), {"twin"})
    theirs = stats.ttest_rel(twin[:, 0], values[:, 0]).confidence_interval(0.95)
    own = found.arms["twin"].adjusted
    assert (own.low, own.high) == pytest.approx((theirs.low, theirs.high))
    assert {name: found.arms[name] for name in NAMES[1:3]} == before.arms
    assert (found.sd, found.family, found.odd) == (before.sd, before.family, before.odd)


def test_a_collapsed_baseline_leaves_each_arm_to_its_own_paired_t() -> None:
    found = compared(study(4, 5, np.random.default_rng(9), (0.5, 0.005, 0.005, 0.005)))
    assert found.odd == {"micro": "more"}
    assert found.sd is None
    assert found.resolved is None
    assert all(comparison.adjusted.low is not None for comparison in found.arms.values())


def test_unequal_arms_are_told_by_column_of_unbalanced_studies() -> None:
    values = study(4, 6, np.random.default_rng(10), (0.005, 0.005, 0.3, 0.005))
    values[[0, 3], [1, 2]] = np.nan
    assert odd_arms(values) == {2: "more"}


def test_one_seed_gives_a_difference_and_nothing_else() -> None:
    each = compared(np.array([[1.6, 1.59]])).arms["global"]
    assert each.adjusted.value == pytest.approx(-0.01)
    assert each.per_seed == {0: pytest.approx(-0.01)}
    assert each.paired is None
    assert (each.adjusted.low, each.adjusted.high) == (None, None)


def test_two_seeds_give_per_seed_differences_whatever_the_number_of_arms() -> None:
    found = compared(study(5, 2, np.random.default_rng(11)))
    assert found.family == 0
    for each in found.arms.values():
        assert len(each.per_seed) == 2
        assert each.paired is None
        assert (each.adjusted.low, each.adjusted.high) == (None, None)


def test_an_arm_with_one_run_borrows_no_uncertainty() -> None:
    values = study(3, 4, np.random.default_rng(12))
    values[1:, 2] = np.nan
    found = compared(values)
    assert found.arms["global"].adjusted.low is not None
    assert found.arms["shuffled"].adjusted.low is None
    assert found.family == 1


def test_arms_without_a_shared_seed_are_not_compared() -> None:
    values = np.array([[1.6, np.nan], [np.nan, 1.5]])
    assert compared(values).arms == {}


@pytest.mark.parametrize("seeds", [(1.6, 1.61, 1.59), (0.0, 0.0, 0.0)])
def test_equal_runs_give_no_p_and_no_warning(seeds: tuple[float, ...]) -> None:
    block = np.array(seeds)[:, None]
    found = compared(np.hstack([block, block, block + 0.1]))
    assert found.arms["global"].adjusted.value == 0
    assert found.arms["shuffled"].adjusted.value == pytest.approx(0.1)
    for each in found.arms.values():
        assert each.adjusted.low is None
        assert each.paired is not None
        assert each.paired.low is None


def test_mean_interval_is_students() -> None:
    values = np.array([1.0, 2.0, 4.0, 4.5])
    low, high = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    ours = mean_interval(values)
    assert (ours.low, ours.high) == pytest.approx((low, high))
    assert mean_interval(values[:2]).low is None


def test_mean_interval_of_values_whose_squares_overflow() -> None:
    small, large = np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 4.0]) * 1e250
    found, scaled = mean_interval(small), mean_interval(large)
    assert found.low is not None
    assert scaled.low == pytest.approx(found.low * 1e250)
    assert scaled.p == pytest.approx(found.p)


def test_seeds_needed_give_the_power_that_is_promised() -> None:
    sd, effect, rng = 0.006, 0.004, np.random.default_rng(13)
    n = seeds_needed(sd, 1, effect)
    assert n is not None
    differences = rng.normal(-effect, sd * math.sqrt(2), size=(4000, n))
    t = differences.mean(axis=1) / stats.sem(differences, axis=1)
    assert 0.78 < np.mean(np.abs(t) > stats.t.ppf(0.975, n - 1)) < 0.86
    more = seeds_needed(sd, 4, effect)
    assert more is not None
    assert more > n
    assert seeds_needed(1.0, 1, 1e-4) is None

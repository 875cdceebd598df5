"""Trends and contrasts: against statsmodels and scipy; how often they err: test_error_rates."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.api import OLS

from moebench.report.infer.contrasts import Contrast, contrasts, equality, slope
from moebench.report.infer.statistics import chosen_wrongly, mean_interval


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
    spent = chosen_wrongly(4)
    interval = theirs.conf_int(0.05 - spent)[0]
    assert (estimate.low, estimate.high) == pytest.approx(tuple(interval))
    assert estimate.p == pytest.approx(theirs.pvalue.item() + spent)


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
    assert ours.estimate().p == pytest.approx(theirs.pvalue + chosen_wrongly(5))
    assert ours.df == 7


@pytest.mark.parametrize("seeds", [0, 1, 2])
def test_below_three_seeds_there_is_no_error(seeds: int) -> None:
    values = study(np.random.default_rng(0), 3, np.zeros(3))
    values[seeds:, 2] = np.nan
    (found,) = contrasts(values, np.array([[0.5, 0.5, -1]]))
    assert (found.error, found.seeds) == (None, seeds)
    assert not any(equality(values, 2, 1, 0, 1)[2:])


def test_a_contrast_of_two_arms_is_their_difference() -> None:
    values = study(np.random.default_rng(3), 4, np.zeros(2))
    (found,) = contrasts(values, np.array([[-1.0, 1]]))
    alone = mean_interval(values[:, 1] - values[:, 0])
    assert isinstance(found, Contrast)
    assert found.estimate().low == pytest.approx(alone.low)
    assert found.tail(0.0) == pytest.approx(0.5)

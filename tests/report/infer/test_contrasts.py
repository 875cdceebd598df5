"""Trends and other contrasts, against scipy and a line; test_error_rates has how often they err."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from moebench.report.infer.contrasts import contrast, equality, slope


def study(rng: np.random.Generator, seeds: int, effects: np.ndarray, sd: float = 1) -> np.ndarray:
    block = 4 * rng.normal(size=(seeds, 1))
    return block + effects + sd * rng.normal(size=(seeds, len(effects)))


@pytest.mark.parametrize("missing", [0, 2])
def test_a_trend_is_students_t_over_the_slopes_of_seeds(missing: int) -> None:
    rng = np.random.default_rng(missing)
    values = study(rng, 7, np.array([0, 0.4, 0.7, 1.5]))
    values.flat[[1, 14][:missing]] = np.nan
    x = [0.0, 1, 3, 5]
    complete = values[~np.isnan(values).any(axis=1)]
    slopes = [float(np.polyfit(x, row, 1)[0]) for row in complete]
    theirs: Any = stats.ttest_1samp(slopes, 0)
    interval = theirs.confidence_interval(0.95)
    found = contrast(values, slope(x))
    ours = found.estimate()
    assert found.seeds == 7 - missing
    assert ours.value == pytest.approx(np.mean(slopes))
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high))
    assert ours.p == pytest.approx(theirs.pvalue)
    above: Any = stats.ttest_1samp(slopes, 0, alternative="greater")
    assert found.tail(found.value) == pytest.approx(above.pvalue)


def test_a_slope_is_that_of_a_line() -> None:
    x = [1.0, 2, 5, 9]
    y = np.array([3.0, 2.5, 2.4, 1])
    assert slope(x) @ y == pytest.approx(np.polyfit(x, y, 1)[0])


def test_arms_that_are_not_involved_change_nothing() -> None:
    values = study(np.random.default_rng(1), 8, np.zeros(5))
    row = np.array([1.0, 0, -1, 0, 0])
    before = contrast(values, row)
    values[:, 1], values[:, 3] = values[:, 0] + 1e-6, np.nan
    assert contrast(values, row) == before


@pytest.mark.parametrize("seeds", [0, 1, 2])
def test_below_three_seeds_there_is_no_error(seeds: int) -> None:
    values = study(np.random.default_rng(0), 3, np.zeros(3))
    values[seeds:, 2] = np.nan
    found = contrast(values, np.array([0.5, 0.5, -1]))
    assert (found.error, found.seeds) == (None, seeds)
    assert equality(values, 2, 1, 0, 1)[2:] == (1.0, 1.0)


def test_runs_that_do_not_vary_give_no_error() -> None:
    found = contrast(np.array([[1.6, 1.5], [1.7, 1.6], [1.65, 1.55]]), np.array([1.0, -1]))
    assert (found.value, found.error) == (pytest.approx(0.1), None)
    assert found.estimate().low is None

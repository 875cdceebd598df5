"""Critical values against Dunnett's published tables, scipy and Student's t."""

import numpy as np
import pytest
from scipy import stats

from moebench.report.infer.dunnett import critical_value, loadings, within


def tail(t: float, correlation: np.ndarray, df: int) -> float:
    return 1.0 - within(t, loadings(correlation), df)


# Dunnett 1964, Biometrics 20:482, Table II: two-sided 5 %, 1 to 9 comparisons
PUBLISHED = {
    5: (2.57, 3.03, 3.29, 3.48, 3.62, 3.73, 3.82, 3.90, 3.97),
    10: (2.23, 2.57, 2.76, 2.89, 2.99, 3.07, 3.14, 3.19, 3.24),
    20: (2.09, 2.38, 2.54, 2.65, 2.73, 2.80, 2.86, 2.90, 2.95),
    60: (2.00, 2.27, 2.41, 2.51, 2.58, 2.64, 2.69, 2.73, 2.77),
    10**6: (1.96, 2.21, 2.35, 2.44, 2.51, 2.57, 2.61, 2.65, 2.69),
}


def equal(m: int, correlation: float = 0.5) -> np.ndarray:
    return np.full((m, m), correlation) + (1 - correlation) * np.eye(m)


@pytest.mark.parametrize("df", PUBLISHED)
def test_critical_values_are_the_published_ones(df: int) -> None:
    found = [critical_value(equal(m), df, 0.95) for m in range(1, 10)]
    assert found == pytest.approx(PUBLISHED[df], abs=0.0061)


@pytest.mark.parametrize("df", [1, 2, 4, 30])
def test_one_comparison_is_students_t(df: int) -> None:
    assert critical_value(np.eye(1), df, 0.95) == pytest.approx(stats.t.ppf(0.975, df), rel=1e-5)
    assert tail(2.5, np.eye(1), df) == pytest.approx(2 * stats.t.sf(2.5, df), rel=1e-4)


def test_far_tails_keep_their_size() -> None:
    assert tail(30.0, np.eye(1), 2) == pytest.approx(2 * stats.t.sf(30, 2), rel=1e-4)
    assert abs(tail(1e6, equal(3), 40)) < 1e-9


def test_independent_comparisons_multiply() -> None:
    c = critical_value(equal(3, 0.0), 10**6, 0.95)
    assert (2 * stats.norm.cdf(c) - 1) ** 3 == pytest.approx(0.95, abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_correlations_of_unbalanced_designs_agree_with_scipy(seed: int) -> None:
    # Differences of three arms with variances a_i to a baseline of variance 1, plus a disturbance
    # that no product b_i b_j reproduces, as missing runs cause it.
    rng = np.random.default_rng(seed)
    covariance = np.diag(rng.uniform(0.6, 2, 3)) + 1
    covariance[0, 1] = covariance[1, 0] = 1.1
    root = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(root, root)
    scipys = stats.multivariate_t.cdf(
        np.full(3, 2.6),
        lower_limit=np.full(3, -2.6),
        shape=correlation,  # pyright: ignore[reportArgumentType] (its stub says int)
        df=7,
        maxpts=400_000,
        random_state=np.random.default_rng(0),
    )
    assert 1 - tail(2.6, correlation, 7) == pytest.approx(scipys, abs=1e-3)


def test_loadings_of_products_are_exact() -> None:
    b = np.array([0.3, 0.6, 0.8, 0.7])
    correlation = np.outer(b, b) + np.diag(1 - b**2)
    assert loadings(correlation) == pytest.approx(b, abs=1e-6)


def test_tail_undoes_critical_value_and_grows_with_the_family() -> None:
    previous = 0.0
    for m in (1, 2, 5, 12):
        c = critical_value(equal(m), 6, 0.9)
        assert tail(c, equal(m), 6) == pytest.approx(0.1, abs=1e-7)
        assert c > previous
        previous = c

"""Dunnett's distribution: the largest of several differences to one baseline, by chance alone.

Differences of m arms from one baseline share the baseline's error and the estimate of the standard
deviation, so that |T_1|, ..., |T_m| follow a multivariate t. With T_i = (b_i Z + sqrt(1 - b_i^2)
E_i) / S, where Z and the E_i are standard normal and df S^2 is chi-squared, the correlation of
T_i and T_j is b_i b_j and the probability that no |T_i| exceeds t is a double integral:

    P(max |T_i| <= t) = E_S E_Z prod_i [Phi((t S - b_i Z) / r_i) - Phi((-t S - b_i Z) / r_i)]

with r_i = sqrt(1 - b_i^2) (Dunnett 1955, JASA 50:1096; Dunnett 1964, Biometrics 20:482). Where no
run is missing b_i = sqrt(1/2) and this is exact. Missing runs can give correlations that are no
such products; b is then their least-squares fit (Hsu 1992, J. Comput. Graph. Stat. 1:151, the
factor-analytic method, which SAS uses too). The integral is a fixed Gauss-Legendre sum, so that
reports are reproducible to the digit. Probabilities are right to 1e-5 of their complement.
"""

import math
from functools import lru_cache

import numpy as np

NODES = 64
WIDEST_Z = 8.0  # the normal density beyond carries 1e-15
LARGEST_LOADING = 0.995  # above it, the integrand is too steep for the nodes


def critical_value(correlation: np.ndarray, df: int, level: float) -> float:
    """The t that no |T_i| exceeds with probability `level`; Student's t for one comparison.

    Args:
        correlation: of the m statistics, [m, m].
        df: degrees of freedom of the residual variance, at least 1.
        level: between 0 and 1, such as 0.95.
    """
    return _critical_value(tuple(loadings(correlation)), df, level)


@lru_cache(maxsize=256)
def _critical_value(loading: tuple[float, ...], df: int, level: float) -> float:
    b = np.array(loading)
    low, high = 0.0, 2.0
    while within(high, b, df) < level:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle, b, df) < level else (low, middle)
    return (low + high) / 2


def loadings(correlation: np.ndarray) -> np.ndarray:
    """The b whose products b_i b_j are nearest to the correlations, in least squares; [m].

    Minimises over one b_i at a time, in turn, which is linear. The result is exact where the
    correlations are such products, as in every design without missing runs.
    """
    m = len(correlation)
    if m == 1:
        return np.zeros(1)
    others = correlation - np.eye(m)
    b = np.full(m, math.sqrt(max(others.sum() / (m * (m - 1)), 0.0)))
    for _ in range(200):
        before = b.copy()
        for i in range(m):
            weight = b @ b - b[i] ** 2
            if weight > 0:
                b[i] = np.clip(others[i] @ b / weight, -LARGEST_LOADING, LARGEST_LOADING)
        if np.abs(b - before).max() < 1e-12:
            break
    return b


def within(t: float, b: np.ndarray, df: int) -> float:
    """P(max |T_i| <= t) for correlations b_i b_j; b as `loadings` gives it."""
    from scipy.special import ndtr

    z, z_weight = _normal_nodes()
    s, s_weight = _scale_nodes(df)
    b, times = np.unique(np.round(b, 12), return_counts=True)  # without missing runs all are equal
    rest = np.sqrt(1 - b**2)[:, None, None]
    shift = b[:, None, None] * z[:, None]
    inside = ndtr((t * s - shift) / rest) - ndtr((-t * s - shift) / rest)
    return float(z_weight @ (inside ** times[:, None, None]).prod(axis=0) @ s_weight)


@lru_cache(maxsize=1)
def _normal_nodes() -> tuple[np.ndarray, np.ndarray]:
    node, weight = np.polynomial.legendre.leggauss(NODES)
    z = WIDEST_Z * node
    density = np.exp(-(z**2) / 2)
    weight = weight * density
    return z, weight / weight.sum()


@lru_cache(maxsize=256)
def _scale_nodes(df: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes of S = sqrt(chi2 / df) at quantiles u^3: dense near 0, which decides the tail of t."""
    from scipy.special import chdtri

    node, weight = np.polynomial.legendre.leggauss(NODES)
    u = (node + 1) / 2
    return np.sqrt(chdtri(df, 1 - u**3) / df), weight * 1.5 * u**2

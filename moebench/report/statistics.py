"""What paired runs can say about arms: differences to a baseline, their intervals and p values.

Arms of one seed saw the same batches from the same initial weights, so that a seed is a block of a
randomised block design: value = arm + seed + error, by least squares, any runs missing. Values
come as a frame with one row a seed and one column an arm, NaN where a run is missing. Rules are
those of protocol.md, section 3: three shared seeds before there is an interval, one level of 95 %
for all comparisons of an endpoint together, and arms of clearly unequal variance out of the pool.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from moebench.report.dunnett import critical_value, tail

LEVEL = 0.95
ODD = 0.01  # level, over all arms, of a test that takes some out of the pool
FEWEST_SEEDS = 3  # two seeds leave one degree of freedom: an interval 12.7 standard errors wide
POWER = 0.8


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval and p value, each None where the seeds do not allow one."""

    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None


@dataclass(frozen=True)
class Comparison:
    """One arm against the baseline.

    Attributes:
        adjusted: the difference, with an interval and p value that hold for all arms at once.
        paired: the mean of the paired differences with Student's t, on its own; None below
            three shared seeds.
        per_seed: the paired difference of each seed that both arms have.
        left_pool: "more" or "less" for an arm whose variance is clearly larger or smaller than the
            pool's, else None.
    """

    adjusted: Estimate
    paired: Estimate | None
    per_seed: dict[int, float]
    left_pool: str | None = None


@dataclass(frozen=True)
class Comparisons:
    """All arms of one endpoint against the baseline.

    Attributes:
        arms: by name, without the baseline and without arms that share no seed with it.
        odd: what left the pool, the baseline included, and whether it varies "more" or "less".
        sd: the pooled residual standard deviation of one run; None without a pool.
        df: its degrees of freedom.
        family: the number of comparisons that the adjustment is for.
        resolved: the half-width of the widest adjusted interval of the pool.
    """

    arms: dict[str, Comparison]
    odd: dict[str, str]
    sd: float | None = None
    df: int = 0
    family: int = 0
    resolved: float | None = None


def mean_interval(values: np.ndarray, level: float = LEVEL) -> Estimate:
    """Student's t for a mean over seeds, or over paired differences; its p is for a mean of 0.

    Without an interval below three values, and without p where the values do not vary.
    """
    n, mean = len(values), float(np.mean(values))
    if n < FEWEST_SEEDS:
        return Estimate(mean)
    from scipy.special import stdtr, stdtrit

    error = float(np.std(values, ddof=1)) / math.sqrt(n)
    half = float(stdtrit(n - 1, (1 + level) / 2)) * error
    p = 2 * float(stdtr(n - 1, -abs(mean) / error)) if error > _floor(values) else None
    return Estimate(mean, mean - half, mean + half, p)


class BlockFit:
    """Least squares of value = arm + seed over the runs that are there.

    Arms are eliminated first (the intra-block equations, Yates 1940), which leaves a symmetric
    system with one row a seed, `information @ seed = moment`. Both sides are sums over arms, so
    that the fit without an arm is that of the sums without its terms.

    Attributes:
        rss, df: residual sum of squares and its degrees of freedom.
        effect: of each arm; only differences of two have a meaning.
    """

    def __init__(self, values: np.ndarray) -> None:
        present = ~np.isnan(values)
        filled = np.where(present, values, 0.0)
        self.runs = present.sum(axis=0)
        self.share = np.where(present, 1.0 / np.maximum(self.runs, 1), 0.0).T  # [arms, seeds]
        mean = filled.sum(axis=0) / np.maximum(self.runs, 1)
        deviation = np.where(present, values - mean, 0.0).T  # [arms, seeds]
        self.informations = np.eye(len(values)) * present.T[:, None] - (
            self.share[:, :, None] * present.T[:, None]
        )
        self.moments = deviation
        self.squares = (deviation**2).sum(axis=1)
        self.floor = _floor(values) ** 2 * values.size
        self.rss, self.df, self.inverse = self._solve(np.ones(values.shape[1]))
        self.effect = mean - self.share @ self.inverse @ self.moments.sum(axis=0)

    def contrasts(self, baseline: int, others: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Differences of arms to the baseline, and their covariance in units of the variance.

        Each arm must share a seed with the baseline, directly or by way of other arms.
        """
        contrast = self.share[list(others)] - self.share[baseline]
        difference = self.effect[list(others)] - self.effect[baseline]
        own = np.diag(1 / self.runs[list(others)]) + 1 / self.runs[baseline]
        covariance = own + contrast @ self.inverse @ contrast.T
        return difference, covariance

    def without(self, arm: int) -> tuple[float, int]:
        """`rss` and `df` of the fit to all runs but those of one arm."""
        kept = np.ones(len(self.runs))
        kept[arm] = 0
        return self._solve(kept)[:2]

    def _solve(self, kept: np.ndarray) -> tuple[float, int, np.ndarray]:
        information = np.tensordot(kept, self.informations, 1)
        moment = kept @ self.moments
        inverse = np.linalg.pinv(information, rcond=1e-9, hermitian=True)
        rank = round(float(np.trace(inverse @ information)))
        rss = float(kept @ self.squares - moment @ inverse @ moment)
        df = int(kept @ (self.runs - (self.runs > 0))) - rank
        return max(rss, self.floor), df, inverse


def compare(values: pd.DataFrame, baseline: str) -> Comparisons:
    """Every arm against the baseline at a primary endpoint, at 95 % for all of them together.

    Arms in the pool get Dunnett-type intervals from the block model (`dunnett.py`, with the
    correlations of this very design). An arm out of the pool (see `odd_arms`) gets its own paired
    t. Both kinds share the 5 %: of k comparisons each outside takes 1/k of it (Bonferroni), the
    pool takes the rest at once. An arm with one shared seed, and all arms where none shares
    three, get the difference alone.

    Args:
        values: one row a seed, one column an arm, NaN where a run is missing.
        baseline: a column with at least one run.
    """
    differences = {
        arm: (values[arm] - values[baseline]).dropna() for arm in values.columns if arm != baseline
    }
    shared = {arm: len(each) for arm, each in differences.items() if len(each)}
    pool = [baseline, *(arm for arm, n in shared.items() if n >= 2)]
    if max(shared.values(), default=0) < FEWEST_SEEDS:
        pool = [baseline]
    odd = odd_arms(values[pool], baseline)
    pool = [] if baseline in odd else [arm for arm in pool if arm not in odd]
    if max((shared[arm] for arm in pool if arm != baseline), default=0) < FEWEST_SEEDS:
        pool = []
    inside = [arm for arm in pool if arm != baseline]
    outside = [arm for arm, n in shared.items() if arm not in pool and n >= FEWEST_SEEDS]
    family = len(inside) + len(outside)

    estimates: dict[str, Estimate] = {}
    sd, df, resolved = None, 0, None
    if inside:
        estimates, sd, df, resolved = _dunnett(values[pool], family)
    for arm in outside:
        alone = mean_interval(differences[arm].to_numpy(), 1 - (1 - LEVEL) / family)
        p = None if alone.p is None else min(1.0, family * alone.p)
        estimates[arm] = Estimate(alone.value, alone.low, alone.high, p)
    arms = {}
    for arm in shared:
        each = differences[arm]
        paired = mean_interval(each.to_numpy())
        arms[arm] = Comparison(
            adjusted=estimates.get(arm, Estimate(paired.value)),
            paired=paired if len(each) >= FEWEST_SEEDS else None,
            per_seed={int(str(seed)): float(value) for seed, value in each.items()},
            left_pool=odd.get(arm),
        )
    return Comparisons(arms, odd, sd, df, family, resolved)


def _dunnett(
    values: pd.DataFrame, family: int
) -> tuple[dict[str, Estimate], float | None, int, float | None]:
    """Estimates of all columns against the first, their sd and df, and the widest half-width."""
    fit = BlockFit(values.to_numpy(float))
    others = range(1, values.shape[1])
    difference, covariance = fit.contrasts(0, others)
    names = list(values.columns[1:])
    if fit.rss <= fit.floor:  # runs that do not vary say nothing about chance
        return (
            {a: Estimate(float(d)) for a, d in zip(names, difference, strict=True)},
            None,
            0,
            None,
        )
    sd = math.sqrt(fit.rss / fit.df)
    root = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(root, root)
    share = len(names) / family
    half = sd * root * critical_value(correlation, fit.df, 1 - (1 - LEVEL) * share)
    estimates = {
        arm: Estimate(
            float(d),
            float(d - h),
            float(d + h),
            min(1.0, tail(abs(d) / (sd * r), correlation, fit.df) / share),
        )
        for arm, d, h, r in zip(names, difference, half, root, strict=True)
    }
    return estimates, sd, fit.df, float(half.max())


def odd_arms(values: pd.DataFrame, baseline: str) -> dict[str, str]:
    """The arms whose variance is clearly unequal to that of the others, and in which direction.

    "more" (a collapsed arm): the F test of the residual that an arm's runs add to the block model
    of the other arms against the residual of that model; exact under equal variances for any
    missing runs (Chow 1960, Econometrica 28:591). The worst arm is taken away and the rest tested
    again until half are gone; all arms up to the last significant step leave, so that two
    collapsed arms do not hide each other (as in Rosner 1983, Technometrics 25:165).
    "less" (an A/A arm that has not drifted from its twin): paired differences to the baseline that
    vary clearly less than the rest of the pool, by the lower tail of F. Left in, such a pair would
    make the pool look quieter than it is. Both at 1 %, divided by the number of arms tested.

    Two arms cannot be told apart, and few seeds show only gross inequality: a standard deviation
    about 21 times the others' with 3 arms and 3 seeds, 3 times with 5 arms and 5 seeds.
    """
    from scipy.special import fdtr

    odd = dict.fromkeys(_scattered(values), "more")
    if baseline in odd:
        return odd
    quiet = {}
    left = [arm for arm in values.columns if arm not in odd]
    fit = BlockFit(values[left].to_numpy(float))
    for arm in left:
        each = (values[arm] - values[baseline]).dropna()
        df = len(each) - 1
        if arm == baseline or df < 1 or fit.df - df < 1:
            continue
        own = max(float(np.var(each, ddof=1)) * df / 2, fit.floor)
        rest = max(fit.rss - own, fit.floor)
        ratio = own / df / (rest / (fit.df - df))
        if rest > fit.floor and fdtr(df, fit.df - df, ratio) < ODD / (len(left) - 1):
            quiet[arm] = "less"
    return odd | quiet


def _scattered(values: pd.DataFrame) -> list[str]:
    from scipy.special import fdtrc

    left, removed, last = list(values.columns), [], 0
    for _ in range((len(left) - 1) // 2):
        fit = BlockFit(values[left].to_numpy(float))
        p = {}
        for i, arm in enumerate(left):
            rss, df = fit.without(i)
            extra, extra_df = max(fit.rss - rss, fit.floor), fit.df - df
            testable = df >= 1 and extra_df >= 1
            p[arm] = float(fdtrc(extra_df, df, extra / extra_df / (rss / df))) if testable else 1.0
        worst = min(left, key=lambda arm: p[arm])
        removed.append(worst)
        last = len(removed) if p[worst] < ODD / len(left) else last
        left.remove(worst)
    return removed[:last]


def seeds_needed(sd: float, family: int, effect: float) -> int | None:
    """About how many seeds show an effect in four of five studies; None above 10,000.

    The smallest n with effect >= sd sqrt(2 / n) (t at the level 0.05 / family + t at the power of
    80 %), both of (family)(n - 1) degrees of freedom: the normal approximation with Student's
    quantiles and Bonferroni's level, slightly more than Dunnett's.

    Args:
        sd: residual standard deviation of one run, in the units of `effect`.
        family: comparisons with the baseline.
        effect: above 0.
    """
    from scipy.special import stdtrit

    n = np.arange(FEWEST_SEEDS, 10_001)
    df = family * (n - 1)
    quantiles = stdtrit(df, 1 - (1 - LEVEL) / (2 * family)) + stdtrit(df, POWER)
    enough = np.flatnonzero(sd * np.sqrt(2 / n) * quantiles <= effect)
    return int(n[enough[0]]) if len(enough) else None


def _floor(values: np.ndarray) -> float:
    """What rounding alone can make of equal values."""
    return 1e-12 * max(float(np.nanmax(np.abs(values), initial=0.0)), 1e-300)

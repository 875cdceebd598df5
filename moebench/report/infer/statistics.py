"""Differences of arms to a baseline from paired runs, with intervals and p values.

Arms of one seed see the same batches from the same initial weights, so a seed is a block of a
randomised block design: value = arm + seed + error, fitted by least squares, with any runs missing.
Values are an array [seeds, arms], NaN where a run is missing. An interval takes three shared seeds;
all comparisons of an endpoint share one level of 95 %; arms of clearly unequal variance are left
out of the pool, and A/A twins always. These intervals describe: pooled, they err too often where
one arm varies more than the others. Verdicts rest on the paired t (`decisions.py`).
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from moebench.report.infer.dunnett import critical_value

LEVEL = 0.95
ODD = 0.001  # level, over all arms, of each of the two tests for unequal variance
VERDICT_SEEDS = 6  # fewer bear no verdict
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
        adjusted: the difference, with an interval that holds for all arms at once; no p value.
        paired: the mean of the paired differences with Student's t for this arm alone; None below
            three shared seeds.
        per_seed: the paired differences, by the seeds that both arms have.
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
        odd: the arms that left the pool, by name, and whether they vary "more" or "less".
        sd: the pooled residual standard deviation of one run; None without a pool.
        df: its degrees of freedom.
        family: the number of comparisons that share the level.
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

    Fewer than three values, or values that do not vary, give the mean alone.
    """
    n, size = len(values), float(np.abs(values).max()) or 1.0  # squares of 1e200 overflow
    scaled = values / size
    middle = scaled.sum() / n
    mean, apart = float(middle) * size, scaled - middle
    error = math.sqrt(apart @ apart / (n - 1) / n) * size if n >= FEWEST_SEEDS else 0.0
    if error <= _floor(values):
        return Estimate(mean)
    from scipy.special import stdtr

    half = quantile(n - 1, (1 + level) / 2) * error
    return Estimate(mean, mean - half, mean + half, 2 * float(stdtr(n - 1, -abs(mean) / error)))


@lru_cache(maxsize=4096)
def quantile(df: int, level: float) -> float:
    """Of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(df, level))


class BlockFit:
    """Least squares of value = arm + seed over the runs that exist.

    Arms are eliminated first (the intra-block equations, Yates 1940), which leaves a symmetric
    system with one row a seed, `information @ seed = moment`. Both sides are sums over arms, so
    leaving out an arm drops its terms from the sums.

    Attributes:
        rss, df: residual sum of squares and its degrees of freedom.
        effect: of each arm; only differences of effects have a meaning.
    """

    def __init__(self, values: np.ndarray) -> None:
        present = (~np.isnan(values)).T  # [arms, seeds]
        filled = np.where(present, values.T, 0.0)
        self.runs = present.sum(axis=1)
        self.share = present / np.maximum(self.runs, 1)[:, None]
        mean = (filled * self.share).sum(axis=1)
        self.moment = np.where(present, filled - mean[:, None], 0.0)
        self.information = np.eye(len(values)) * present[:, None] - (
            self.share[:, :, None] * present[:, None]
        )
        self.square = (self.moment**2).sum(axis=1)
        self.floor = max(_floor(values) ** 2 * values.size, 1e-13 * float(self.square.sum()))
        rss, df, self.inverse = self._solve(np.zeros(len(self.runs), bool))
        self.rss, self.df = float(rss), int(df)
        self.effect = mean - self.share @ self.inverse @ self.moment.sum(axis=0)

    def contrasts(self, baseline: int, others: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Differences of arms to the baseline, and their covariance in units of the variance.

        Each arm must share a seed with the baseline, directly or through other arms.
        """
        contrast = self.share[list(others)] - self.share[baseline]
        difference = self.effect[list(others)] - self.effect[baseline]
        of_means = np.diag(1 / self.runs[list(others)]) + 1 / self.runs[baseline]
        return difference, of_means + contrast @ self.inverse @ contrast.T

    def without_each(self) -> tuple[np.ndarray, np.ndarray]:
        """`rss` and `df` of the fits that leave out one arm, for each arm."""
        return self._solve(np.eye(len(self.runs), dtype=bool))[:2]

    def _solve(self, left_out: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`rss`, `df` and inverse information of fits without the arms of a mask [..., arms]."""
        kept = (~left_out).astype(float)
        information = np.tensordot(kept, self.information, 1)
        moment = kept @ self.moment
        inverse = np.linalg.pinv(information, rcond=1e-9, hermitian=True)
        rank = np.rint(np.einsum("...ij,...ji->...", inverse, information)).astype(int)
        explained = np.einsum("...i,...ij,...j->...", moment, inverse, moment)
        df = (kept @ np.maximum(self.runs - 1, 0)).astype(int) - rank
        return np.maximum(kept @ self.square - explained, self.floor), df, inverse


def compare(
    values: np.ndarray, arms: Sequence[str], seeds: Sequence[int], twins: Collection[str] = ()
) -> Comparisons:
    """Every arm against the first at a primary endpoint, at 95 % for all of them together.

    Arms in the pool get Dunnett-type intervals from the block model (`dunnett.py`, with the
    correlations of this very design). An arm outside the pool (see `odd_arms`) gets its own paired
    t. Both kinds share the 5 %, less the error rate of choosing the pool (`chosen_wrongly`): of k
    comparisons, each one outside takes 1/k of it (Bonferroni), and the pool takes the rest. An arm
    with one shared seed gets the difference alone, as do all arms where none shares three seeds. A
    twin has its own paired t at 95 %, and changes nothing for the others.

    Args:
        values: [seeds, arms], NaN where a run is missing; each arm has a run.
        arms: names, the baseline first.
        seeds: of the rows.
        twins: names of A/A arms.
    """
    difference = values - values[:, :1]
    shared = (~np.isnan(difference)).sum(axis=0)
    apart = {i for i, name in enumerate(arms) if name in twins and i > 0}
    pool = [i for i in range(len(arms)) if i == 0 or (shared[i] >= 2 and i not in apart)]
    odd: dict[int, str] = {}
    if shared[pool[1:]].max(initial=0) >= FEWEST_SEEDS:
        odd = {pool[i]: way for i, way in odd_arms(values[:, pool]).items()}
    inside = [i for i in pool[1:] if i not in odd]
    if 0 in odd or shared[inside].max(initial=0) < FEWEST_SEEDS:
        inside = []
    outside = [
        i
        for i in range(1, len(arms))
        if i not in inside and i not in apart and shared[i] >= FEWEST_SEEDS
    ]
    family = len(inside) + len(outside)
    spent = chosen_wrongly(len(pool))

    estimates: dict[int, Estimate] = {}
    sd, df, resolved = None, 0, None
    if inside:
        pooled, sd, df, resolved = _dunnett(values[:, [0, *inside]], family, spent)
        estimates = dict(zip(inside, pooled, strict=True))
    paired = {i: mean_interval(_known(difference[:, i])) for i in range(1, len(arms)) if shared[i]}
    for i in outside:
        alone = mean_interval(_known(difference[:, i]), 1 - (1 - LEVEL - spent) / family)
        estimates[i] = Estimate(alone.value, alone.low, alone.high)
    for i in apart & {*paired}:
        estimates[i] = replace(paired[i], p=None)
    compared = {
        arms[i]: Comparison(
            adjusted=estimates.get(i, Estimate(alone.value)),
            paired=alone if shared[i] >= FEWEST_SEEDS else None,
            per_seed=by_seed(seeds, difference[:, i]),
            left_pool=odd.get(i),
        )
        for i, alone in paired.items()
    }
    left = {arms[i]: way for i, way in odd.items()}
    return Comparisons(compared, left, sd, df, family, resolved)


def by_seed(seeds: Sequence[int], values: np.ndarray) -> dict[int, float]:
    """[seeds] values as a dictionary, without those that are nan."""
    pairs = zip(seeds, values, strict=True)
    return {seed: float(value) for seed, value in pairs if not np.isnan(value)}


def _dunnett(
    values: np.ndarray, family: int, spent: float
) -> tuple[list[Estimate], float | None, int, float | None]:
    """Estimates of all columns against the first, their sd and df, and the widest half-width."""
    fit = BlockFit(values)
    difference, covariance = fit.contrasts(0, range(1, values.shape[1]))
    if fit.rss <= fit.floor:  # runs that do not vary give no estimate of chance
        return [Estimate(float(value)) for value in difference], None, 0, None
    sd = math.sqrt(fit.rss / fit.df)
    error = sd * np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(error, error) * sd**2
    share = len(difference) / family
    half = error * critical_value(correlation, fit.df, 1 - (1 - LEVEL - spent) * share)
    ends = zip(difference, difference - half, difference + half, strict=True)
    return [Estimate(*map(float, values)) for values in ends], sd, fit.df, float(half.max())


def chosen_wrongly(arms: int) -> float:
    """The probability that `odd_arms` drops any of so many arms of equal variance from the pool.

    An arm that is dropped by chance leaves a pool that seems to vary less than it does, so its
    intervals err more often than stated. They err at most in the studies where the whole pool errs
    and in those where an arm was dropped. With this share taken out of the 5 %, both together err
    in at most 5 %. The levels of the two tests are added. Testing in steps adds a little more, far
    less than the slack, as simulation shows (docs/reading.md).
    """
    return 2 * ODD if arms > 2 else 0.0


def odd_arms(values: np.ndarray) -> dict[int, str]:
    """The arms whose variance is clearly unequal to that of the others, and in which direction.

    "more" (a collapsed arm): an F test of the residual that an arm's runs add to the block model of
    the other arms, against the residual of that model. It is exact under equal variances, whatever
    runs are missing (Chow 1960, Econometrica 28:591). The worst arm is removed and the rest tested
    again until half are gone. All arms up to the last significant step leave, so that two collapsed
    arms do not hide each other (as in Rosner 1983, Technometrics 25:165).
    "less" (an A/A arm that has not drifted from its twin): paired differences to the baseline that
    vary clearly less than the rest of the pool, by the lower tail of F. If it stayed, the pool
    would seem to vary less than it does. Both tests are at 0.1 %, divided by the number of arms
    tested: at 1 %, arms that leave by chance raise the family-wise error by half a percent.

    With two arms no arm can be tested, and few seeds show only gross inequality: a standard
    deviation about 67 times the others' with 3 arms and 3 seeds, 4 times with 5 arms and 5 seeds.

    Args:
        values: [seeds, arms], the baseline first, NaN where a run is missing.

    Returns:
        "more" or "less" by column.
    """
    from scipy.special import fdtr

    odd = dict.fromkeys(_scattered(values), "more")
    left = [i for i in range(values.shape[1]) if i not in odd]
    if 0 in odd:
        return odd
    fit = BlockFit(values[:, left])
    for i in left[1:]:
        paired = _known(values[:, i] - values[:, 0])
        df = len(paired) - 1
        if df < 1 or fit.df - df < 1:
            continue
        of_pair = max(float(np.var(paired)) * len(paired) / 2, fit.floor)
        rest = max(fit.rss - of_pair, fit.floor)
        ratio = of_pair / df / (rest / (fit.df - df))
        if rest > fit.floor and fdtr(df, fit.df - df, ratio) < ODD / (len(left) - 1):
            odd[i] = "less"
    return odd


def _scattered(values: np.ndarray) -> list[int]:
    """The columns that vary clearly more than the others."""
    from scipy.special import fdtrc

    left, removed, last = list(range(values.shape[1])), [], 0
    for _ in range((len(left) - 1) // 2):
        fit = BlockFit(values[:, left])
        rss, df = fit.without_each()
        extra, extra_df = np.maximum(fit.rss - rss, fit.floor), fit.df - df
        testable = (df >= 1) & (extra_df >= 1)
        df, extra_df = np.maximum(df, 1), np.maximum(extra_df, 1)
        p = np.where(testable, fdtrc(extra_df, df, extra / extra_df / (rss / df)), 1.0)
        worst = int(np.argmin(p))
        last = len(removed) + 1 if p[worst] < ODD / len(left) else last
        removed.append(left.pop(worst))
    return removed[:last]


def seeds_needed(sd: float, family: int, effect: float) -> int | None:
    """About how many seeds show an effect in four of five studies; None above 10,000.

    The smallest n with effect >= sd sqrt(2 / n) (t at the level 0.05 / family + t at the power of
    80 %), both with n - 1 degrees of freedom. This is the normal approximation with Student's
    quantiles and Bonferroni's level, which asks for slightly more than Holm's method.

    Args:
        sd: residual standard deviation of one run, in the units of `effect`.
        family: tests that share the level; 1 for a finding in a declared order.
        effect: above 0.
    """
    from scipy.special import stdtrit

    n = np.arange(VERDICT_SEEDS, 10_001)
    df = n - 1
    quantiles = stdtrit(df, 1 - (1 - LEVEL) / (2 * family)) + stdtrit(df, POWER)
    enough = np.flatnonzero(sd * np.sqrt(2 / n) * quantiles <= effect)
    return int(n[enough[0]]) if len(enough) else None


def _known(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]


def _floor(values: np.ndarray) -> float:
    """The largest difference that rounding makes between equal values."""
    return 1e-12 * max(float(np.nanmax(np.abs(values), initial=0.0)), 1e-100)

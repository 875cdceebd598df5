"""What these runs may decide: when there is a verdict at all, and at which level each is given.

A table is *too early* until its runs have ended and beat a byte trigram of the training text: arms
that have barely parted differ by tiny and consistent amounts that say nothing of trained models.
The mean over arms that decides this is independent of their differences. Later, each comparison
has the p value of its paired t from six seeds on. In an order that a study declared, each is
tested at the full level, and only if the one before was decided; without one, Holm's method adjusts
them (Holm 1979, Scand. J. Statist. 6:65). Both err in at most 5 % of studies, however unequal the
variances of the arms are; docs/reading.md has the simulations.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from moebench.report.infer.statistics import Estimate

LEVEL = 0.05  # of all verdicts of a table together
SHOWS = 2.0  # between-seed deviations by which a treatment moves MaxVio where it shows
TREATMENT = "load/max_vio_micro"


class Decision(NamedTuple):
    """What the table decides about one comparison.

    Attributes:
        p: adjusted; None without a verdict.
        withheld: why there is no verdict; "" if there is one.
        treatment: deviations by which the treatment shows; None where it is not known.
        estimate: the difference with its own interval at the level, on which the verdict rests.
        level: of the verdict.
    """

    p: float | None
    withheld: str
    treatment: float | None
    estimate: Estimate
    level: float = LEVEL

    @property
    def decided(self) -> bool:
        return self.p is not None and self.p < self.level


def adjusted(p: np.ndarray, ordered: bool) -> np.ndarray:
    """Adjusted p values [..., tests] of tests that share a level.

    Args:
        p: of each test alone, [..., tests].
        ordered: whether the tests come in an order that was declared before, else by Holm.
    """
    if ordered:
        return np.maximum.accumulate(p, axis=-1)
    order = np.argsort(p, axis=-1, kind="stable")
    times = np.arange(p.shape[-1], 0, -1)
    steps = np.maximum.accumulate(np.take_along_axis(p, order, -1) * times, axis=-1)
    result = np.empty_like(steps)
    np.put_along_axis(result, order, np.minimum(steps, 1.0), -1)
    return result


def excludes(
    value: np.ndarray | float,
    error: np.ndarray | float,
    seeds: int,
    size: float,
    tests: int,
    level: float = LEVEL,
) -> np.ndarray | np.bool_:
    """Whether intervals lie short of a size, as seen from 0 or from its other side.

    They hold for all tests together, by Bonferroni: if every true value is as large as its size,
    any is excluded in at most a share `level` of studies.

    Args:
        value: of a contrast.
        error: its standard error.
        seeds: that have it.
        size: in question; its sign is its direction.
        tests: that share the level.
    """
    from scipy.special import stdtrit

    half = stdtrit(seeds - 1, 1 - level / (2 * tests)) * error
    return np.sign(size) * value + half < abs(size)


def too_early(
    bits: Mapping[int, list[float]], trigram: float | None, step: float | None, steps: float | None
) -> str:
    """Why it is too early for a verdict; "" if it is not.

    Args:
        bits: validation bits a byte of the arms, by seed.
        trigram: of the training text, bits a byte; None where the runs do not record it.
        step: at which the runs are compared.
        steps: of the planned schedule.
    """
    if step is not None and steps is not None and step < steps:
        return f"step {step:.0f} of {steps:.0f}"
    if trigram is None:
        return "the runs do not record the bits a byte of a trigram, which they must beat"
    worst, seed = max(((sum(b) / len(b), s) for s, b in bits.items() if b), default=(math.nan, 0))
    if worst < trigram:
        return ""
    if math.isnan(worst):
        return "the runs do not record bits a byte"
    return (
        f"{worst:.3f} bits a byte in seed {seed} (mean over arms) is worse than the "
        f"{trigram:.3f} of a byte trigram"
    )


def treatment_shows(mine: Mapping[int, float], base: Mapping[int, float]) -> float | None:
    """By how many between-seed deviations of a run two arms' means differ; None if unknown.

    The deviation is that of an arm's runs over seeds, pooled over the two arms. The paired
    difference is no measure: it is small and consistent even where arms have barely parted.

    Args:
        mine, base: MaxVio in a micro-batch, by seed.
    """
    one, other = (np.array(list(values.values())) for values in (mine, base))
    if min(len(one), len(other)) < 2:
        return None
    spread = math.sqrt((float(one.var(ddof=1)) + float(other.var(ddof=1))) / 2)
    return abs(float(one.mean() - other.mean())) / spread if spread > 0 else None

"""Seeds by the noise alone: what a stopping rule resolves, from pairs of A/A twins.

A twin begins from router weights that differ by next to nothing, so that the true difference of a
pair is 0, and its square is an estimate of the variance of a paired difference. No difference of
treatments enters. The power is that of the rule's last look alone, which earlier looks only add to.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from moebench.looks import FEWEST, LEVELS, PARTS
from moebench.report.infer.arms import BITS, PERTURB, Arm, Table
from moebench.report.infer.statistics import POWER

SURE = 0.8  # of the upper bound of a deviation
MOST = 10_000


class Noise(NamedTuple):
    """The deviation of a paired difference of two arms that do not differ.

    Attributes:
        sd: root of the mean square of the pairs.
        upper: the bound below which it lies in four of five cases.
        pairs: their number.
    """

    sd: float
    upper: float
    pairs: int


def twins(arms: Sequence[Arm]) -> list[tuple[Arm, Arm]]:
    """Each A/A arm and the arm that it is equal to but for its perturbed router."""

    def rest(arm: Arm) -> dict[str, object]:
        return {k: v for k, v in arm.science.items() if k not in ("seed", PERTURB)}

    plain = [arm for arm in arms if PERTURB not in arm.science]
    return [
        (other, arm)
        for arm in arms
        if PERTURB in arm.science
        for other in plain
        if rest(other) == rest(arm)
    ]


def aa_noise(table: Table) -> Noise | None:
    """The noise of a table, in nats a byte; None without a pair of twins."""
    pairs = []
    for one, other in twins(table.arms):
        mine, theirs = one.per_seed.get(BITS, {}), other.per_seed.get(BITS, {})
        pairs += [theirs[seed] - mine[seed] for seed in sorted({*mine} & {*theirs})]
    return noise_of(math.log(2) * np.array(pairs)) if pairs else None


def noise_of(differences: np.ndarray) -> Noise:
    """The noise of differences whose true mean is 0."""
    from scipy.special import chdtri

    n = len(differences)
    sd = math.sqrt(float((differences**2).mean()))
    return Noise(sd, sd * math.sqrt(n / float(chdtri(n, SURE))), n)


def resolved(seeds: int) -> float:
    """The difference, in deviations of a paired one, that four of five studies tell from 0."""
    from scipy.special import nctdtrinc, stdtrit

    critical = float(stdtrit(seeds - 1, 1 - LEVELS[-1] / 2))
    return float(nctdtrinc(seeds - 1, 1 - POWER, critical)) / math.sqrt(seeds)


def seeds_for(effect: float, sd: float) -> int | None:
    """The most seeds of a rule that resolves an effect; None above 10,000."""
    for seeds in range(FEWEST, MOST + 1, PARTS[0]):
        if resolved(seeds) * sd <= effect:
            return seeds
    return None

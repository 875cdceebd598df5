"""The order in which domains take turns, so that each has its share at any time.

Shares are whole numbers over a period, after which the order repeats. The n-th turn of a domain
comes after its accumulated share reaches n - 1 and before it exceeds n. Among the domains that may
take a turn, the one with the earliest deadline does (R. Tijdeman, "The chairman assignment
problem", 1980). After any number of turns, no domain is more than one turn away from its share.
Domains with equal shares alternate.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from moebench.config.schema import DataConfig
from moebench.data.corpus import Corpus
from moebench.errors import DataError

PERIOD = 10_000  # turns that shares are rounded to; a domain has at least one

Ints = npt.NDArray[np.int64]


class Turns:
    """The order of turns for whole shares, which sum to the length of the period."""

    def __init__(self, shares: Sequence[int]):
        self.shares = np.array(shares) // math.gcd(*shares)
        self.period = int(self.shares.sum())
        taken = np.zeros(len(shares), np.int64)
        self.domain = np.empty(self.period, np.int64)  # that takes each turn of the period
        self.number = np.empty(self.period, np.int64)  # turns that this domain had before
        for turn in range(self.period):
            is_allowed = taken * self.period < self.shares * (turn + 1)
            deadline = np.where(is_allowed, (taken + 1) * self.period / self.shares, np.inf)
            domain = int(deadline.argmin())
            self.domain[turn], self.number[turn] = domain, taken[domain]
            taken[domain] += 1

    def at(self, turns: Ints) -> tuple[Ints, Ints]:
        """The domain of each turn, and the number of turns that it had before."""
        rounds, place = np.divmod(turns, self.period)
        domain = self.domain[place]
        return domain, rounds * self.shares[domain] + self.number[place]

    def most(self, domain: int, turns: int) -> int:
        """The most turns that a domain takes in any `turns` consecutive ones."""
        rounds, rest = divmod(turns, self.period)
        places = np.flatnonzero(self.domain == domain)
        twice = np.concatenate([places, places + self.period])
        within = np.searchsorted(twice, places + rest) - np.arange(len(places))
        return int(rounds * len(places) + within.max())


def shares(corpus: Corpus, data: DataConfig) -> tuple[int, ...]:
    """The turns of a period that each domain of a corpus takes.

    Raises DataError for a weight of a domain that is not trained on.
    """
    for name in data.weights:
        if name not in corpus.domains:
            raise DataError(
                f"data.weights={{{name}:{data.weights[name]:g}}}: no domain of that name is "
                f"trained on; there are {', '.join(corpus.domains)}"
            )
    wanted = np.ones(len(corpus.domains))
    if data.sampling == "proportional":
        tokens = np.array([len(corpus.train(domain)) for domain in corpus.domains])
        wanted = (tokens / tokens.max()) ** (1 / data.temperature)
    wanted *= [data.weights.get(domain, 1.0) for domain in corpus.domains]
    if (wanted == wanted[0]).all():
        return (1,) * len(wanted)
    turns = np.maximum(1, np.round(PERIOD * wanted / wanted.sum())).astype(int)
    return tuple(turns.tolist())

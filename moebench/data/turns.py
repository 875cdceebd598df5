"""Whose turn it is: a fixed order of the domains in which each has its share at any time.

Shares are whole numbers over a period, after which the order begins again. Within it, a domain's
n-th turn may not come before its share has reached n - 1 and comes before it passes n; of the
domains that may, the one that must come soonest does (R. Tijdeman, "The chairman assignment
problem", 1980). So after any number of turns no domain is more than one turn from its share. With
equal shares the domains simply alternate.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from moebench.config.schema import DataConfig
from moebench.data.corpus import Corpus
from moebench.errors import DataError

PERIOD = 10_000  # turns, to which shares are rounded; at least one for each domain

Ints = npt.NDArray[np.int64]


class Turns:
    """The order of turns for whole shares, which sum to the length of the period."""

    def __init__(self, shares: Sequence[int]):
        self.shares = np.array(shares) // math.gcd(*shares)
        self.period = int(self.shares.sum())
        taken = np.zeros(len(shares), np.int64)
        self.domain = np.empty(self.period, np.int64)  # of each turn in the period
        self.number = np.empty(self.period, np.int64)  # how many turns of it came before
        for turn in range(self.period):
            open_now = taken * self.period < self.shares * (turn + 1)
            due = np.where(open_now, (taken + 1) * self.period / self.shares, np.inf)
            next_one = int(due.argmin())
            self.domain[turn], self.number[turn] = next_one, taken[next_one]
            taken[next_one] += 1

    def at(self, turns: Ints) -> tuple[Ints, Ints]:
        """The domain of each turn, and how many turns that domain had before."""
        rounds, place = np.divmod(turns, self.period)
        domain = self.domain[place]
        return domain, rounds * self.shares[domain] + self.number[place]

    def most(self, domain: int, turns: int) -> int:
        """The most turns that a domain has in a stretch of so many, wherever it begins."""
        rounds, rest = divmod(turns, self.period)
        own = np.flatnonzero(self.domain == domain)
        twice = np.concatenate([own, own + self.period])
        within = np.searchsorted(twice, own + rest) - np.arange(len(own))
        return int(rounds * len(own) + within.max())


def shares(corpus: Corpus, data: DataConfig) -> tuple[int, ...]:
    """How many turns of a period each domain of a corpus has.

    Raises DataError for a weight of a domain that is not there.
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

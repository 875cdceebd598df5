"""Batches of sequences, each a pure function of the corpus, the seed and the step.

A domain's tokens are cut into windows of seq_len + 1 tokens that begin seq_len apart. An epoch of a
domain is a permutation of its windows, keyed by (seed, domain name, epoch), and sequences take the
windows in this order. The micro-batches of a run take turns among the domains, so that after any
number of them each domain has its share to within one (`moebench.data.turns`). All randomness is
keyed (`moebench.data.draws`), so that steps can be read in any order.
"""

import hashlib
import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moebench.config.schema import ExperimentConfig
from moebench.data.corpus import Corpus, Half
from moebench.data.draws import key, permutation
from moebench.data.tokenizer import Tokens
from moebench.data.turns import Turns, shares
from moebench.errors import DataError

Ints = npt.NDArray[np.int64]


class Batch(NamedTuple):
    """Sequences with the domain of each.

    Logical micro-batch m is sequences m * micro_bsz to (m + 1) * micro_bsz - 1.
    """

    tokens: Ints  # [sequences, seq_len + 1]; inputs are [:, :-1], targets [:, 1:]
    domain: Ints  # [sequences], an index into the corpus's domains


class Places(NamedTuple):
    """The positions of a batch's sequences in the corpus."""

    domain: Ints  # [sequences], an index into the corpus's domains
    start: Ints  # [sequences], the first token, counted in the domain's training tokens


class Batches:
    """The training batches of one seed.

    Args:
        corpus: its training tokens are read.
        seq_len: input tokens of a sequence.
        micro_bsz, global_bsz: sequences in a logical micro-batch and in a step; the first divides
            the second.
        seed: keys every draw.
        homogeneity: with 1, each micro-batch has one domain; with h, a random share 1 - h of a
            step's sequences change places. The set of a step's sequences does not depend on it.
        shares: turns of each domain in a period; one each by default.

    Raises DataError for a domain with less text than one sequence.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        seq_len: int,
        micro_bsz: int,
        global_bsz: int,
        seed: int,
        homogeneity: float = 1.0,
        shares: Sequence[int] | None = None,
    ):
        assert global_bsz % micro_bsz == 0, "checked by the config"
        self.corpus = corpus
        self.seq_len, self.micro_bsz, self.global_bsz = seq_len, micro_bsz, global_bsz
        self.seed, self.homogeneity = seed, homogeneity
        self._streams = [corpus.train(domain) for domain in corpus.domains]
        self._windows = [_count_windows(corpus, domain, seq_len) for domain in corpus.domains]
        self._turns = Turns(shares or (1,) * len(corpus.domains))
        self._offset = key(seed, "offset") % self._turns.period
        before = self._turns.domain[: self._offset]
        self._before = np.bincount(before, minlength=len(corpus.domains))
        self._epochs: dict[tuple[int, int], Ints] = {}  # a cache, see `_epoch`

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 1."""
        places = self.places(step)
        return Batch(self.read(places), places.domain)

    def read(self, places: Places) -> Ints:
        """The tokens [sequences, seq_len + 1] at these places."""
        tokens = np.empty((len(places.domain), self.seq_len + 1), np.int64)
        for d in np.unique(places.domain):
            rows = np.flatnonzero(places.domain == d)
            tokens[rows] = _cut(self._streams[d], places.start[rows], self.seq_len)
        return tokens

    def places(self, step: int) -> Places:
        """The places of a step's batch."""
        assert step >= 1
        micro_batches = self.global_bsz // self.micro_bsz
        turns = (step - 1) * micro_batches + permutation(micro_batches, self.seed, "order", step)
        domain, turn = self._turns.at(turns + self._offset)
        turn = turn - self._before[domain]
        domain = np.repeat(domain, self.micro_bsz)
        place = np.tile(np.arange(self.micro_bsz), micro_batches)
        number = np.repeat(turn, self.micro_bsz) * self.micro_bsz + place  # within the domain
        mixed = self._mixing(step)
        domain, number = domain[mixed], number[mixed]
        start = np.empty_like(number)
        for d in np.unique(domain):
            rows = np.flatnonzero(domain == d)
            start[rows] = self._starts(int(d), number[rows])
        return Places(domain, start)

    def _mixing(self, step: int) -> Ints:
        """[global_bsz] the sequence of the homogeneous batch that each slot gets."""
        order = np.arange(self.global_bsz)
        moved = round((1 - self.homogeneity) * self.global_bsz)
        if moved:
            slots = permutation(self.global_bsz, self.seed, "mixing", step)[:moved]
            order[np.sort(slots)] = slots
        return order

    def _starts(self, d: int, number: Ints) -> Ints:
        """[sequences] first token of a domain's sequences, given their numbers in the run."""
        epoch, place = np.divmod(number, self._windows[d])
        window = np.empty_like(number)
        for e in np.unique(epoch):
            window[epoch == e] = self._epoch(d, int(e))[place[epoch == e]]
        return window * self.seq_len

    def _epoch(self, d: int, epoch: int) -> Ints:
        """[windows] the order of a domain's windows in an epoch; the last few are cached."""
        if (d, epoch) not in self._epochs:
            if len(self._epochs) >= 2 * len(self._streams):
                del self._epochs[next(iter(self._epochs))]
            name = self.corpus.domains[d]
            order = permutation(self._windows[d], self.seed, "epoch", name, epoch)
            self._epochs[d, epoch] = order
        return self._epochs[d, epoch]


def make_batches(corpus: Corpus, config: ExperimentConfig) -> Batches:
    """The training batches of a run."""
    return Batches(
        corpus,
        seq_len=config.seq_len,
        micro_bsz=config.micro_bsz,
        global_bsz=config.global_bsz,
        seed=config.seed,
        homogeneity=config.data.homogeneity,
        shares=shares(corpus, config.data),
    )


def check_epochs(corpus: Corpus, config: ExperimentConfig) -> None:
    """Raise DataError if a run reads a domain more than `data.max_epochs` times."""
    seq_len, micro_bsz, steps = config.seq_len, config.micro_bsz, config.train.steps
    micro_batches, most = config.global_bsz // micro_bsz, config.data.max_epochs
    windows = [_count_windows(corpus, domain, seq_len) for domain in corpus.domains]
    turns = Turns(shares(corpus, config.data))

    def epochs(steps: int) -> list[float]:
        """[domains] epochs of each domain, at most, for any seed."""
        return [
            turns.most(d, steps * micro_batches) * micro_bsz / number
            for d, number in enumerate(windows)
        ]

    needed = epochs(steps)
    if max(needed) > most:
        worst = needed.index(max(needed))
        fewer = bisect_right(range(steps), most, key=lambda step: max(epochs(step))) - 1
        remedy = f"use at most train.steps={fewer}, or raise" if fewer > 0 else "add text, or raise"
        raise DataError(
            f"data.max_epochs={most:g}: train.steps={steps} would read domain "
            f"{corpus.domains[worst]!r} {needed[worst]:.2f} times ({windows[worst]} sequences of "
            f"seq_len={seq_len}); {remedy} data.max_epochs to {math.ceil(needed[worst])}"
        )


def validation(
    corpus: Corpus,
    half: Half,
    *,
    sequences: int,
    seq_len: int,
    domains: Sequence[str] | None = None,
) -> Batch:
    """Validation sequences of each domain, in the order of the domains, the same for every seed.

    They are spaced evenly over the tokens of one half and do not overlap.

    Args:
        half: "tune" or "test".
        sequences: per domain.
        seq_len: input tokens of a sequence.
        domains: by default, those that are trained on.

    Raises DataError for a domain with too little text for these sequences.
    """
    parts = []
    for domain in corpus.domains if domains is None else domains:
        stream = corpus.valid(domain, half)
        room = len(stream) // (seq_len + 1)
        if room < sequences:
            fewer = f"lower data.valid_sequences to {room}" if room else "lower seq_len"
            raise DataError(
                f"data.valid_sequences={sequences}: domain {domain!r} has room for {room} of "
                f"{seq_len + 1} tokens in its {half} half; {fewer}, or add validation text"
            )
        parts.append(_cut(stream, np.arange(sequences) * len(stream) // sequences, seq_len))
    return Batch(np.concatenate(parts), np.repeat(np.arange(len(parts)), sequences))


def validation_documents(
    corpus: Corpus,
    half: Half,
    *,
    sequences: int,
    seq_len: int,
    domains: Sequence[str] | None = None,
) -> Ints:
    """[sequences, seq_len] the number of the document of each target token of `validation`.

    It takes the arguments of `validation`.
    """
    parts, before = [], 0
    for domain in corpus.domains if domains is None else domains:
        begins = corpus.valid_documents(domain, half)
        starts = np.arange(sequences) * len(corpus.valid(domain, half)) // sequences
        place = starts[:, None] + 1 + np.arange(seq_len)
        parts.append(before + np.searchsorted(begins, place, side="right") - 1)
        before += len(begins)
    return np.concatenate(parts)


def sequences_hash(batch: Batch) -> str:
    """Hex digest of a batch's sequences, in any order: equal for runs that can be paired."""
    rows = sorted(row.tobytes() for row in batch.tokens.astype("<i8"))
    return hashlib.sha256(b"".join(rows)).hexdigest()


def _count_windows(corpus: Corpus, domain: str, seq_len: int) -> int:
    """The sequences that a domain's training tokens hold; DataError for none."""
    tokens = len(corpus.train(domain))
    if tokens <= seq_len:
        raise DataError(
            f"seq_len={seq_len}: domain {domain!r} has {tokens} tokens of training text, and one "
            f"sequence takes {seq_len + 1}; lower seq_len, add text or pick others by data.domains"
        )
    return (tokens - 1) // seq_len


def _cut(stream: Tokens, starts: Ints, seq_len: int) -> Ints:
    """[sequences, seq_len + 1] tokens of a stream from each start."""
    return stream[starts[:, None] + np.arange(seq_len + 1)].astype(np.int64)

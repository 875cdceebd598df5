"""Batches: every one a pure function of the corpus, the seed and the step.

A domain's tokens are cut into windows of seq_len + 1 tokens that begin seq_len apart. An epoch of a
domain is a permutation of its windows, keyed by (seed, domain's name, epoch), and sequences take
the windows in its order. The micro-batches of the whole run take the domains in turn, so that
after any number of them the domains' shares differ by at most one. All randomness comes from the
raw stream of a Philox generator under a hashed key: no state is kept, any step can be asked for
first, and no release of numpy may change the numbers.
"""

import hashlib
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moebench.config.schema import ExperimentConfig
from moebench.data.corpus import Corpus, Half, Tokens
from moebench.errors import DataError

Ints = npt.NDArray[np.int64]


class Batch(NamedTuple):
    """Sequences with the domain of each.

    Logical micro-batch m is sequences m * micro_bsz to (m + 1) * micro_bsz - 1.
    """

    tokens: Ints  # [sequences, seq_len + 1]; inputs are [:, :-1], targets [:, 1:]
    domain: Ints  # [sequences], an index into the corpus's domains


class Batches:
    """The training batches of one seed.

    Args:
        corpus: whose training tokens are read.
        seq_len: inputs of a sequence, in tokens.
        micro_bsz, global_bsz: sequences in a logical micro-batch and in a step; the first divides
            the second.
        seed: keys every draw.
        homogeneity: 1 keeps each micro-batch to one domain; h lets a random share 1 - h of a
            step's sequences change places. Which sequences a step has does not depend on it.

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
    ):
        assert global_bsz % micro_bsz == 0, "checked by the config"
        self.corpus = corpus
        self.seq_len, self.micro_bsz, self.global_bsz = seq_len, micro_bsz, global_bsz
        self.seed, self.homogeneity = seed, homogeneity
        self._streams = [corpus.train(domain) for domain in corpus.domains]
        self._windows = [_count_windows(corpus, domain, seq_len) for domain in corpus.domains]
        self._offset = _key(seed, "offset") % len(corpus.domains)
        self._epochs: dict[tuple[int, int], Ints] = {}  # only to save time; see `_epoch`

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 1."""
        assert step >= 1
        micro_batches = self.global_bsz // self.micro_bsz
        turns = (step - 1) * micro_batches + _permutation(micro_batches, self.seed, "order", step)
        # Every len(domains)-th turn is the same domain's, so this turn is its (turn // len)-th.
        turn, place = (
            np.repeat(turns, self.micro_bsz),
            np.tile(np.arange(self.micro_bsz), len(turns)),
        )
        domain = (turn + self._offset) % len(self._streams)
        number = turn // len(self._streams) * self.micro_bsz + place  # of the domain's sequences
        mixed = self._mixing(step)
        domain, number = domain[mixed], number[mixed]

        tokens = np.empty((self.global_bsz, self.seq_len + 1), np.int64)
        for d in np.unique(domain):
            rows = np.flatnonzero(domain == d)
            tokens[rows] = _cut(self._streams[d], self._starts(int(d), number[rows]), self.seq_len)
        return Batch(tokens, domain)

    def _mixing(self, step: int) -> Ints:
        """[global_bsz] which sequence of the homogeneous batch each slot gets."""
        order = np.arange(self.global_bsz)
        moved = round((1 - self.homogeneity) * self.global_bsz)
        if moved:
            slots = _permutation(self.global_bsz, self.seed, "mixing", step)[:moved]
            order[np.sort(slots)] = slots
        return order

    def _starts(self, d: int, number: Ints) -> Ints:
        """First token of a domain's sequences by their number since the start of the run."""
        epoch, place = np.divmod(number, self._windows[d])
        window = np.empty_like(number)
        for e in np.unique(epoch):
            window[epoch == e] = self._epoch(d, int(e))[place[epoch == e]]
        return window * self.seq_len

    def _epoch(self, d: int, epoch: int) -> Ints:
        """The order of a domain's windows in an epoch; the last few are remembered."""
        if (d, epoch) not in self._epochs:
            if len(self._epochs) >= 2 * len(self._streams):
                del self._epochs[next(iter(self._epochs))]
            name = self.corpus.domains[d]
            order = _permutation(self._windows[d], self.seed, "epoch", name, epoch)
            self._epochs[d, epoch] = order
        return self._epochs[d, epoch]


def check_epochs(corpus: Corpus, config: ExperimentConfig) -> None:
    """Raise DataError if a run reads some domain more than `data.max_epochs` times."""
    seq_len, micro_bsz, global_bsz = config.seq_len, config.micro_bsz, config.global_bsz
    steps, max_epochs = config.train.steps, config.data.max_epochs
    domains = len(corpus.domains)
    windows = {domain: _count_windows(corpus, domain, seq_len) for domain in corpus.domains}
    smallest = min(windows, key=windows.__getitem__)
    turns = math.ceil(steps * (global_bsz // micro_bsz) / domains)  # at most, of one domain
    epochs = turns * micro_bsz / windows[smallest]
    if epochs > max_epochs:
        allowed = int(max_epochs * windows[smallest]) // micro_bsz * domains
        fewer = allowed // (global_bsz // micro_bsz)
        remedy = f"use at most train.steps={fewer}, or raise" if fewer else "add text, or raise"
        raise DataError(
            f"data.max_epochs={max_epochs:g}: train.steps={steps} would read domain {smallest!r} "
            f"{epochs:.2f} times ({windows[smallest]} sequences of seq_len={seq_len}); "
            f"{remedy} data.max_epochs to {math.ceil(epochs)}"
        )


def validation(corpus: Corpus, half: Half, *, sequences: int, seq_len: int) -> Batch:
    """`sequences` sequences of each domain, in the order of the domains and free of any seed.

    They lie evenly over the tokens of that half ("tune" or "test") and do not overlap. Raises
    DataError for a domain that has no room for as many.
    """
    parts = []
    for domain in corpus.domains:
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


def batch_hash(batch: Batch) -> str:
    """Hex digest of a batch: equal for equal tokens, domains and order."""
    digest = hashlib.sha256(repr(batch.tokens.shape).encode())
    for part in batch:
        digest.update(part.astype("<i8").tobytes())
    return digest.hexdigest()


def _count_windows(corpus: Corpus, domain: str, seq_len: int) -> int:
    """How many sequences a domain's training tokens hold; DataError for none."""
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


def _key(*parts: int | str) -> int:
    """128 bits that stand for what is drawn."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:16])


def _permutation(n: int, *key: int | str) -> Ints:
    """A random order of 0 to n - 1, the same for the same key."""
    return np.argsort(np.random.Philox(key=_key(*key)).random_raw(n), kind="stable")

"""The share of a domain's validation text that also occurs in its training text.

The share counts passages of WINDOW bytes. A hash of the passage itself picks one in SAMPLE, so that
the same passages are picked on both sides. The share s is therefore an estimate with an error of
about sqrt(s (1 - s) / n) for n picked passages (more, since neighbours are not independent).
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moebench.data.tokenizer import END

WINDOW = 64  # bytes, a power of two: 64 Latin letters, 21 Chinese characters
SAMPLE = 16  # a power of two
BLOCK = 1 << 16  # windows that are hashed at a time; they fit the processor's cache

Words = npt.NDArray[np.uint64]

BYTES: Words = np.random.Philox(key=WINDOW).random_raw(256)  # a random word for each byte
FACTORS: Words = np.random.Philox(key=SAMPLE).random_raw(WINDOW.bit_length()) | np.uint64(1)


def overlap(valid: Path, train: Path) -> float:
    """The share of the passages in one shard of bytes that occur in another; 0 for no passage."""
    hashes = np.concatenate([np.empty(0, np.uint64), *_passages(valid)])
    known, counts = np.unique(hashes, return_counts=True)
    if not len(known):
        return 0.0
    # Few passages of `train` are known. A table of their first bits excludes the others faster
    # than a search.
    shift = np.uint64(max(1, 64 - (16 * len(known)).bit_length()))
    has_prefix = np.zeros(1 << (64 - int(shift)), bool)
    has_prefix[known >> shift] = True
    occurs = np.zeros(len(known), bool)
    for picked in _passages(train):
        likely = picked[has_prefix[picked >> shift]]
        place = np.minimum(np.searchsorted(known, likely), len(known) - 1)
        occurs[place[known[place] == likely]] = True
    return float(counts[occurs].sum() / counts.sum())


def _passages(path: Path) -> Iterator[Words]:
    """Hashes of a shard's picked passages, block by block; none crosses the end of a document."""
    rest = np.empty(0, np.uint8)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            tokens = np.concatenate([rest, np.frombuffer(block, np.uint8)])
            rest = tokens[-WINDOW + 1 :]
            if len(tokens) < WINDOW:
                continue
            words = BYTES[tokens]
            width = 1
            for factor in FACTORS[: WINDOW.bit_length() - 1]:
                words = words[:-width] * factor + words[width:]
                width *= 2
            mixed = words * FACTORS[-1]
            ends = np.concatenate([[0], np.cumsum(tokens == END)])
            inside = ends[WINDOW:] == ends[: len(ends) - WINDOW]
            picked = mixed[(mixed >> np.uint64(64 - SAMPLE.bit_length() + 1) == 0) & inside]
            yield picked * FACTORS[0]

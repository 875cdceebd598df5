"""How much of the text that is validated on is trained on as well.

Compared are passages of WINDOW bytes: the share of those in the validation text that the training
text of the domain has, too. A hash of the passage itself picks one in SAMPLE, so that the same ones
are picked on both sides; the share is then an estimate with an error of about sqrt(s (1 - s) / n)
for n picked ones (more, since they come in runs).
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moebench.data.tokenizer import END

WINDOW = 64  # bytes, a power of two: 64 Latin letters, 21 Chinese characters
SAMPLE = 16  # a power of two
BLOCK = 1 << 16  # windows that are hashed at a time, so that they stay in the processor's cache

Words = npt.NDArray[np.uint64]

BYTES: Words = np.random.Philox(key=WINDOW).random_raw(256)  # a random word for each byte
FACTORS: Words = np.random.Philox(key=SAMPLE).random_raw(WINDOW.bit_length()) | np.uint64(1)


def overlap(valid: Path, train: Path) -> float:
    """Share of the passages of a shard of bytes that another shard has, too; 0 for no passage."""
    wanted = [*_passages(valid)]
    hashes = np.concatenate(wanted) if wanted else np.empty(0, np.uint64)
    known, counts = np.unique(hashes, return_counts=True)
    if not len(known):
        return 0.0
    # most passages are in neither table, and a table of bits says so faster than a search
    bits = np.uint64(max(1, 64 - (16 * len(known)).bit_length()))
    there = np.zeros(1 << (64 - int(bits)), bool)
    there[known >> bits] = True
    met = np.zeros(len(known), bool)
    for picked in _passages(train):
        likely = picked[there[picked >> bits]]
        place = np.minimum(np.searchsorted(known, likely), len(known) - 1)
        met[place[known[place] == likely]] = True
    return float(counts[met].sum() / counts.sum())


def _passages(path: Path) -> Iterator[Words]:
    """Hashes of the picked passages of a shard that lie within a document, block by block."""
    left = np.empty(0, np.uint8)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            tokens = np.concatenate([left, np.frombuffer(block, np.uint8)])
            left = tokens[-WINDOW + 1 :]
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

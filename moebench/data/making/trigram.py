"""The validation bits a byte of an interpolated byte trigram: what a model must beat to be judged.

With n(abc) the count of byte c after a and b, and t(ab) the number of different bytes after them,

    P(c | a, b) = (n(abc) + t(ab) P(c | b)) / (n(ab) + t(ab))

and likewise down to one in 256 (Witten and Bell 1991, IEEE Trans. Inf. Theory 37:1085, method C).
Counts are scaled so that every domain has the same share. END is a byte like any other: it is
predicted at the end of each document, as a model predicts it, and stands for no byte of text.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moebench.data.tokenizer import END

BLOCK = 1 << 20  # bytes that are counted at a time; limits the memory beside the table of counts
DECIMALS = 6  # that are kept, so that the value does not depend on a machine's logarithm

Floats = npt.NDArray[np.float64]


def trigram_bits(train: Sequence[Path], valid: Sequence[Path], tuned: Sequence[int]) -> float:
    """Bits a byte on the `test` half of validation, the unweighted mean over domains.

    Takes 8 bytes of memory for each triple of bytes that occur: 134 MB for text of all 256.

    Args:
        train: the shard of bytes of each domain.
        valid: the same for validation.
        tuned: tokens of `valid` that belong to the half `tune`, and are left out.
    """
    symbol = _symbols(train)
    model = _Trigram(_counts(train, symbol))
    each = [
        _bits_a_byte(path, begin, symbol, model) for path, begin in zip(valid, tuned, strict=True)
    ]
    return round(sum(each) / len(each), DECIMALS)


class _Trigram:
    """Probabilities from counts [symbols, symbols, symbols] of triples; the last symbol is new."""

    def __init__(self, counts: Floats):
        self.counts = counts
        self.after_two, self.kinds_after_two = counts.sum(2), (counts > 0).sum(2)
        pairs = counts.sum(0)
        single = pairs.sum(0)
        kinds = (single > 0).sum()
        one = (single + kinds / 256) / (single.sum() + kinds)
        after, kinds_after = pairs.sum(1, keepdims=True), (pairs > 0).sum(1, keepdims=True)
        self.second = _interpolated(pairs, after, kinds_after, one)

    def probability(self, a: npt.NDArray, b: npt.NDArray, c: npt.NDArray) -> Floats:
        """P(c | a, b) of symbols [n]."""
        return _interpolated(
            self.counts[a, b, c],
            self.after_two[a, b],
            self.kinds_after_two[a, b],
            self.second[b, c],
        )


def _interpolated(n: Floats, total: Floats, kinds: npt.NDArray, shorter: Floats) -> Floats:
    """(n + kinds * shorter) / (total + kinds); `shorter` where the context is new."""
    known = total > 0
    return np.where(known, (n + kinds * shorter) / np.where(known, total + kinds, 1), shorter)


def _symbols(train: Sequence[Path]) -> npt.NDArray[np.int64]:
    """[256] a number for each byte that occurs in training; all others share the last one."""
    occurs = np.zeros(256, bool)
    occurs[END] = True  # the context of the first byte
    for path in train:
        for block in _blocks(path, 0):
            occurs |= np.bincount(block, minlength=256) > 0
    return np.where(occurs, np.cumsum(occurs) - 1, occurs.sum())


def _counts(train: Sequence[Path], symbol: npt.NDArray[np.int64]) -> Floats:
    """How often symbol c follows a and b, [symbols, symbols, symbols], in equal shares."""
    size = int(symbol[END]) + 2  # END is the last byte that occurs; the new symbol comes after it
    counts = np.zeros(size**3)
    lengths = [path.stat().st_size for path in train]
    for path, length in zip(train, lengths, strict=True):
        weight = sum(lengths) / len(lengths) / length
        for a, b, c in _triples(path, 0, symbol):
            kinds, times = np.unique((a * size + b) * size + c, return_counts=True)
            counts[kinds] += weight * times
    return counts.reshape(size, size, size)


def _bits_a_byte(path: Path, begin: int, symbol: npt.NDArray[np.int64], model: _Trigram) -> float:
    bits, text = 0.0, 0
    end = symbol[END]
    for a, b, c in _triples(path, begin, symbol):
        bits -= float(np.log2(model.probability(a, b, c)).sum())
        text += int((c != end).sum())
    return bits / max(text, 1)


def _triples(
    path: Path, begin: int, symbol: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray, npt.NDArray, npt.NDArray]]:
    """Each symbol of a shard with the two before it, block by block; two ENDs precede the first."""
    rest = np.full(2, symbol[END])
    for block in _blocks(path, begin):
        symbols = np.concatenate([rest, symbol[block]])
        rest = symbols[-2:]
        yield symbols[:-2], symbols[1:-1], symbols[2:]


def _blocks(path: Path, begin: int) -> Iterator[npt.NDArray[np.uint8]]:
    with path.open("rb") as file:
        file.seek(begin)
        while block := file.read(BLOCK):
            yield np.frombuffer(block, np.uint8)

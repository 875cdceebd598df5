"""Random draws by key: no state is kept, and no release of numpy may change the numbers.

They come from the raw stream of a Philox generator, whose algorithm is fixed.
"""

import hashlib

import numpy as np
import numpy.typing as npt


def key(*parts: int | str) -> int:
    """128 bits that stand for what is drawn."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:16])


def permutation(n: int, *parts: int | str) -> npt.NDArray[np.int64]:
    """A random order of 0 to n - 1, the same for the same key."""
    return np.argsort(np.random.Philox(key=key(*parts)).random_raw(n), kind="stable")


def uniform(n: int, *parts: int | str) -> npt.NDArray[np.float64]:
    """n numbers in (0, 1), the same for the same key."""
    drawn = np.random.Philox(key=key(*parts)).random_raw(n) >> np.uint64(11)
    return drawn.astype(np.float64) * 2.0**-53 + 2.0**-54

"""How routing changes over training."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt


def overlap(one: npt.ArrayLike, other: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """[layers] mean over tokens of |E_t and E'_t in common| / k (router saturation; OLMoE, Eq. 5).

    1 for equal selections, k / E in expectation for independent ones.

    Args:
        one, other: [layers, sequences, tokens, top_k] distinct experts of the same tokens; -1 for
            an empty slot.
    """
    one, other = np.asarray(one), np.asarray(other)
    there = one >= 0
    common = (one[..., :, None] == other[..., None, :]).any(-1) & there
    return common.sum((1, 2, 3)) / there.sum((1, 2, 3))


def changed_tokens(one: npt.ArrayLike, other: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """[layers] share of the tokens whose sets of experts differ.

    Args: as for `overlap`.
    """
    one, other = np.sort(one, axis=-1), np.sort(other, axis=-1)
    return (one != other).any(-1).mean((1, 2))


def saturation(probes: Mapping[int, npt.ArrayLike]) -> dict[int, float]:
    """Step -> overlap of its experts on a probe with those of the last step, mean over layers."""
    last = probes[max(probes)]
    return {step: float(overlap(probes[step], last).mean()) for step in sorted(probes)}

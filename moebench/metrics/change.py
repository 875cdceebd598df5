"""How routing changes: over training, and by a bias on the scores."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from torch import Tensor


def overlap(one: npt.ArrayLike, other: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """[layers] mean over tokens of |E_t and E'_t in common| / k (router saturation; OLMoE, Eq. 5).

    1 for equal selections, k / E in expectation for independent ones.

    Args:
        one, other: [layers, sequences, tokens, top_k] distinct experts of the same tokens.
    """
    one, other = np.asarray(one), np.asarray(other)
    there = one >= 0  # -1 is a slot without an expert
    common = (one[..., :, None] == other[..., None, :]).any(-1) & there
    return common.sum((1, 2, 3)) / there.sum((1, 2, 3))


def changed_tokens(one: npt.ArrayLike, other: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """[layers] share of the tokens whose set of experts is not the same.

    Args: as for `overlap`.
    """
    one, other = np.sort(one, axis=-1), np.sort(other, axis=-1)
    return (one != other).any(-1).mean((1, 2))


def saturation(probes: Mapping[int, npt.ArrayLike]) -> dict[int, float]:
    """Step -> overlap of the experts on a probe with those at the last step, mean over layers."""
    last = probes[max(probes)]
    return {step: float(overlap(probes[step], last).mean()) for step in sorted(probes)}


def intervention_rate(
    scores: Float[Tensor, "*batch experts"], bias: Float[Tensor, "*#batch experts"], top_k: int
) -> Float[Tensor, "*batch"]:
    """Share of each token's experts that the bias puts in place of what the scores alone choose.

    1 - |topK(s) and topK(s + b) in common| / k; 0 without a bias, 1 - k / E in expectation where
    the bias decides alone and knows nothing of the token.
    """
    wanted = scores.topk(top_k, dim=-1).indices
    given = (scores + bias).topk(top_k, dim=-1).indices
    return 1 - (wanted.unsqueeze(-1) == given.unsqueeze(-2)).any(-1).double().mean(-1)

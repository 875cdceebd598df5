"""Quantile balancing: the bias at which every expert would have had its share of the last step.

Notation: s_te the score of token t for expert e, b_e the expert's bias, T tokens, E experts, k
experts a token. A token's threshold is what an expert must beat to be selected, and an expert's
margin over it is what the expert's bias may lose:

    alpha_t = the (k+1)-th largest of s_te + b_e over e
    m_te    = s_te - alpha_t
    b_e     = -(the (floor(T k / E) + 1)-th largest of m_te over t),  then b <- b - mean(b)

(Megatron-LM, `megatron/core/transformer/moe/moe_utils.py`: `qb_dual_update`, whose beta is -b.)
There are no hyper-parameters. The peer takes the quantile in each micro-batch and rank and averages
them, which is not the quantile of the step; here it is that of the union.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from moebench.errors import ConfigError

BITS = 8  # of the values' keys that a round of the selection settles
SumCounts = Callable[[Tensor], Tensor]


@torch.no_grad()
def margins(
    scores: Float[Tensor, "*rows experts"], bias: Float[Tensor, "*#rows experts"], top_k: int
) -> Float[Tensor, "*rows experts"]:
    """How far each score, without bias, lies above its token's threshold, which has the bias in it.

    Raises:
        ConfigError: where all experts are selected, so that there is no threshold.
    """
    experts = scores.shape[-1]
    if top_k >= experts:
        raise ConfigError(
            f"top_k={top_k}: quantile balancing needs an expert that is not selected; take "
            f"fewer than {experts}"
        )
    return scores - (scores + bias).topk(top_k + 1, dim=-1).values[..., -1:]


@torch.no_grad()
def quantile_bias(
    parts: Sequence[Float[Tensor, "layers tokens experts"]],
    top_k: int,
    total: int,
    *,
    sum_counts: SumCounts | None = None,
) -> Float[Tensor, "layers experts"]:
    """The next bias, from the margins of all passes and ranks of a step; its mean is 0.

    Args:
        parts: the margins of each pass of this rank.
        total: tokens of the whole step.
        sum_counts: as in `kth_largest`.
    """
    experts = parts[0].shape[-1]
    values = torch.cat(list(parts), 1)
    bias = -kth_largest(values, total * top_k // experts + 1, sum_counts=sum_counts)
    return bias - bias.mean(-1, keepdim=True)


@torch.no_grad()
def kth_largest(
    values: Float[Tensor, "layers tokens experts"],
    k: int,
    *,
    sum_counts: SumCounts | None = None,
) -> Float[Tensor, "layers experts"]:
    """The k-th largest over the tokens of all ranks, exactly, with no value sent.

    A radix selection: the floats are ordered as whole numbers, of which each round counts those
    that agree with the answer so far by their next 8 bits. 4 rounds in fp32, 8 in fp64.

    Args:
        values: of this rank.
        k: from 1, at most the number of tokens of all ranks.
        sum_counts: sums [layers, 256, experts] counts over the ranks; None: there is one.
    """
    layers, _, experts = values.shape
    sum_counts = sum_counts or (lambda counts: counts)
    width = torch.finfo(values.dtype).bits
    key = _ordered(values)
    found = key.new_zeros(layers, 1, experts)
    left = torch.full_like(found, k)  # the answer is the left-th largest of those that agree
    same = torch.ones_like(key, dtype=torch.bool)
    for shift in range(width - BITS, -1, -BITS):
        digit = (key >> shift) & (2**BITS - 1)
        if shift == width - BITS:
            digit = digit ^ 2 ** (BITS - 1)  # the sign, by which negative numbers come first
        empty = key.new_zeros(layers, 2**BITS, experts)
        counts = sum_counts(empty.scatter_add(1, digit, same.to(key.dtype)))
        above = counts.flip(1).cumsum(1).flip(1) - counts  # with a larger digit
        chosen = ((above < left) & (left <= above + counts)).int().argmax(1, keepdim=True)
        left = left - above.gather(1, chosen)
        same = same & (digit == chosen)
        if shift == width - BITS:
            chosen = chosen ^ 2 ** (BITS - 1)
        found = found | (chosen << shift)
    return _unordered(found, values.dtype).squeeze(1)


def _ordered(values: Tensor) -> Tensor:
    """Whole numbers (int64) in the order of the floats."""
    size = torch.finfo(values.dtype).bits
    bits = values.contiguous().view(torch.int32 if size == 32 else torch.int64)
    return (bits ^ _below_the_sign(bits)).long()


def _unordered(key: Tensor, dtype: torch.dtype) -> Tensor:
    size = torch.finfo(dtype).bits
    if size == 32:  # the selection works on 64 bits
        key = ((key ^ 2**31) - 2**31).to(torch.int32)
    return (key ^ _below_the_sign(key)).view(dtype)


def _below_the_sign(bits: Tensor) -> Tensor:
    """All bits but the sign where that is set: negative floats grow as their bits fall."""
    return (bits < 0).to(bits.dtype) * torch.iinfo(bits.dtype).max

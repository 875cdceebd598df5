"""How evenly experts are used, for the routing of any MoE.

Functions take counts, [..., experts] assignments to each expert in a window of tokens, and keep the
leading axes. Take means over layers last: pooling the counts of layers hides uneven loads.
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

CAPACITY_FACTOR = 1.25  # of the drop rate, unless the router has its own


def utilization(counts: Shaped[Tensor, "*batch experts"]) -> Float[Tensor, "*batch experts"]:
    """c_i / mean(c): 1 for every expert under even load."""
    counts = counts.double()
    return counts / counts.mean(-1, keepdim=True)


def max_violation(counts: Shaped[Tensor, "*batch experts"]) -> Float[Tensor, "*batch"]:
    """MaxVio = max_i c_i / mean(c) - 1 (arXiv 2408.15664, Eq. 4); 0 under even load."""
    return utilization(counts).amax(-1) - 1


def coefficient_of_variation(counts: Shaped[Tensor, "*batch experts"]) -> Float[Tensor, "*batch"]:
    """Standard deviation over mean; the divisor of the variance is the number of experts."""
    return utilization(counts).std(-1, correction=0)


def load_entropy(counts: Shaped[Tensor, "*batch experts"]) -> Float[Tensor, "*batch"]:
    """exp(H(f)) / E: 1 under even load, 1 / E when one expert takes all."""
    share = counts.double() / counts.sum(-1, keepdim=True)
    return torch.special.entr(share).sum(-1).exp() / counts.shape[-1]


def normalized_entropy(counts: Shaped[Tensor, "*batch experts"]) -> Float[Tensor, "*batch"]:
    """H(f) / log E: 1 under even load, 0 when one expert takes all."""
    share = counts.double() / counts.sum(-1, keepdim=True)
    return torch.special.entr(share).sum(-1) / math.log(counts.shape[-1])


def within_even_share(counts: Shaped[Tensor, "*batch experts"]) -> Float[Tensor, "*batch"]:
    """sum_i min(f_i, 1 / E): 1 under even load, 1 / E when one expert takes all.

    The utilisation of the MoE Routing Testbed (arXiv 2604.07030).
    """
    share = counts.double() / counts.sum(-1, keepdim=True)
    return share.clamp(max=1 / counts.shape[-1]).sum(-1)


def dead_experts(counts: Shaped[Tensor, "*batch experts"]) -> Float[Tensor, "*batch"]:
    """Share of the experts that no token chose."""
    return (counts == 0).double().mean(-1)


def intervention_rate(
    moved: Int[Tensor, "layers sequences"], counts: Shaped[Tensor, "layers sequences experts"]
) -> Float[Tensor, ""]:
    """Share of the assignments to experts that are not among those of the highest scores.

    1 - |topK(s) and topK(s + b) in common| / k for a bias b on scores s. It is 0 without a
    bias, and 1 - k / E in expectation if only the bias decides.

    Args:
        moved: such assignments, as in `Routing`.
        counts: all assignments.
    """
    return moved.sum().double() / counts.sum()


def gini(counts: Shaped[Tensor, "*batch experts"]) -> Float[Tensor, "*batch"]:
    """Gini coefficient of the loads: 0 under even load, 1 - 1 / E when one expert takes all."""
    ascending = counts.double().sort(-1).values
    experts = counts.shape[-1]
    rank = 2 * torch.arange(1, experts + 1, device=counts.device) - experts - 1
    return (rank * ascending).sum(-1) / (experts * ascending.sum(-1))


def drop_rate(
    counts: Shaped[Tensor, "*batch experts"], capacity_factor: float
) -> Float[Tensor, "*batch"]:
    """Share of the assignments above each expert's capacity, ceil(factor * mean(c)).

    For dropless routing it is the share that would be dropped if the window were one group.
    """
    counts = counts.double()
    capacity = (capacity_factor * counts.mean(-1, keepdim=True) - 1e-9).ceil()  # 1.1 * 10 is 11
    return (counts - capacity).clamp(min=0).sum(-1) / counts.sum(-1)


def padding(
    counts: Shaped[Tensor, "*batch experts"], capacity_factor: float
) -> Float[Tensor, "*batch"]:
    """Share of the rows of each expert's capacity, ceil(factor * mean(c)), that stay empty.

    For dropless routing it is what padding to that capacity would waste.
    """
    counts = counts.double()
    capacity = (capacity_factor * counts.mean(-1, keepdim=True) - 1e-9).ceil()
    return 1 - (counts.minimum(capacity) / capacity).mean(-1)


def random_max_violation(num_experts: int, top_k: int, tokens: int) -> float:
    """Mean MaxVio if every token chose its top_k distinct experts at random.

    By 4,000 multinomial draws (seeded), their deviations scaled to the variance of a choice without
    replacement, (1 - k/E) / (1 - 1/E). 512 tokens, 16 experts, top-2 give 0.22.
    """
    draws = _multinomial(num_experts, top_k, tokens)
    mean = tokens * top_k / num_experts
    return float((draws.max(1) / mean - 1).mean() * _spread(num_experts, top_k))


def random_load(
    num_experts: int, top_k: int, tokens: int, capacity_factor: float = CAPACITY_FACTOR
) -> dict[str, float]:
    """Mean of every load metric if every token chose its top_k distinct experts at random.

    By the draws of `random_max_violation`, but for the dead experts, whose share is exact. Keys are
    `max_vio`, `cv`, `entropy`, `normalized_entropy`, `within_even_share`, `gini`, `dead_experts`,
    `drop_rate` and `padding`.
    """
    mean = tokens * top_k / num_experts
    deviation = _multinomial(num_experts, top_k, tokens) - mean
    counts = torch.from_numpy(mean + deviation * _spread(num_experts, top_k)).clamp(min=0)
    return {
        "max_vio": random_max_violation(num_experts, top_k, tokens),
        "cv": float(coefficient_of_variation(counts).mean()),
        "entropy": float(load_entropy(counts).mean()),
        "normalized_entropy": float(normalized_entropy(counts).mean()),
        "within_even_share": float(within_even_share(counts).mean()),
        "gini": float(gini(counts).mean()),
        "dead_experts": (1 - top_k / num_experts) ** tokens,
        "drop_rate": float(drop_rate(counts, capacity_factor).mean()),
        "padding": float(padding(counts, capacity_factor).mean()),
    }


def _multinomial(num_experts: int, top_k: int, tokens: int) -> np.ndarray:
    return np.random.default_rng(0).multinomial(
        tokens * top_k, np.full(num_experts, 1 / num_experts), size=4000
    )


def _spread(num_experts: int, top_k: int) -> float:
    """Standard deviation of counts drawn without replacement, over that with replacement."""
    if num_experts == 1:
        return 0.0
    return ((1 - top_k / num_experts) / (1 - 1 / num_experts)) ** 0.5

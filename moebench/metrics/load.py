"""How evenly experts are used; for the routing of any MoE.

Every function takes counts, [..., experts] assignments to each expert in the window of tokens that
the caller chose, and keeps the leading axes. Means over layers come last: load is a matter of one
layer, and pooling layers first hides it.
"""

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor


def utilization(counts: Shaped[Tensor, "*batch experts"]) -> Float[Tensor, "*batch experts"]:
    """c_i / mean(c): 1 for every expert under even load."""
    counts = counts.double()
    return counts / counts.mean(-1, keepdim=True)


def max_violation(counts: Shaped[Tensor, "*batch experts"]) -> Float[Tensor, "*batch"]:
    """MaxVio = max_i c_i / mean(c) - 1 (arXiv 2408.15664, Eq. 4); 0 under even load."""
    return utilization(counts).amax(-1) - 1


def coefficient_of_variation(counts: Shaped[Tensor, "*batch experts"]) -> Float[Tensor, "*batch"]:
    """Standard deviation (of the experts at hand, not of a population) over mean."""
    return utilization(counts).std(-1, correction=0)


def load_entropy(counts: Shaped[Tensor, "*batch experts"]) -> Float[Tensor, "*batch"]:
    """exp(H(f)) / E: 1 under even load, 1 / E when one expert takes all."""
    share = counts.double() / counts.sum(-1, keepdim=True)
    return torch.special.entr(share).sum(-1).exp() / counts.shape[-1]


def dead_experts(counts: Shaped[Tensor, "*batch experts"]) -> Float[Tensor, "*batch"]:
    """Share of the experts that no token of the window chose."""
    return (counts == 0).double().mean(-1)


def intervention(
    expert_index: Int[Tensor, "*batch slots"], own_index: Int[Tensor, "*batch top_k"]
) -> Float[Tensor, ""]:
    """Share of the selected experts that are not those of the highest scores: 0 without a bias.

    A slot of -1 has no expert in it and does not count.
    """
    selected = expert_index >= 0
    same = (expert_index[..., :, None] == own_index[..., None, :]).any(-1) & selected
    return 1 - same.sum().double() / selected.sum()


def random_max_violation(num_experts: int, top_k: int, tokens: int) -> float:
    """Mean MaxVio if every token chose its top_k distinct experts at random: the floor of noise.

    By 4,000 multinomial draws (seeded), their deviations scaled to the variance of a choice without
    replacement, (1 - k/E) / (1 - 1/E). 512 tokens, 16 experts, top-2 give 0.22.
    """
    draws = np.random.default_rng(0).multinomial(
        tokens * top_k, np.full(num_experts, 1 / num_experts), size=4000
    )
    spread = ((1 - top_k / num_experts) / (1 - 1 / num_experts)) ** 0.5
    mean = tokens * top_k / num_experts
    return float((draws.max(1) / mean - 1).mean() * spread)

"""The selection of experts: within the best groups, from a mask, and up to a capacity."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def within_top_groups(
    scores: Float[Tensor, "*batch experts"], expert_groups: int, top_groups: int
) -> Float[Tensor, "*batch experts"]:
    """The scores, with -inf for experts outside each token's best `top_groups` groups of experts.

    A group is `experts / expert_groups` consecutive experts, and ranks by the sum of its two
    highest scores (DeepSeek-V3, arXiv 2412.19437, section 2.1.2, where a group is a node).
    """
    grouped = scores.unflatten(-1, (expert_groups, -1))
    rank = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(-1)
    best = rank.topk(top_groups, dim=-1).indices
    inside = torch.zeros_like(rank, dtype=torch.bool).scatter(-1, best, True)
    return grouped.masked_fill(~inside.unsqueeze(-1), -math.inf).flatten(-2)


def of_mask(
    mask: Bool[Tensor, "*batch experts"], scores: Float[Tensor, "*batch experts"], most: int
) -> tuple[Int[Tensor, "*batch most"], Bool[Tensor, "*batch most"]]:
    """Each token's experts in a mask, by descending score, and which of these slots are filled."""
    order = scores.masked_fill(~mask, -math.inf).argsort(dim=-1, descending=True, stable=True)
    index = order[..., :most]
    return index, mask.gather(-1, index)


def within_capacity(
    expert_index: Int[Tensor, "groups tokens top_k"],
    selected: Bool[Tensor, "groups tokens top_k"],
    priority: Float[Tensor, "groups tokens top_k"] | None,
    experts: int,
    most: int,
) -> Bool[Tensor, "groups tokens top_k"]:
    """Which assignments are kept if an expert takes at most `most` of a group.

    Args:
        selected: False for an empty slot, which is never kept.
        priority: the assignments of the highest priority are kept; None: the first, in the order of
            tokens.
    """
    groups, tokens, top_k = expert_index.shape
    # empty slots are sorted behind all experts
    expert = expert_index.masked_fill(~selected, experts).flatten(1)
    if priority is None:
        order = expert.argsort(dim=1, stable=True)
    else:
        first = priority.flatten(1).argsort(dim=1, descending=True, stable=True)
        order = first.gather(1, expert.gather(1, first).argsort(dim=1, stable=True))
    ones = torch.ones_like(expert)
    counts = torch.zeros(groups, experts + 1, dtype=expert.dtype, device=expert.device)
    counts = counts.scatter_add(1, expert, ones)
    start = counts.cumsum(1) - counts
    rank = torch.arange(tokens * top_k, device=expert.device) - start.gather(
        1, expert.gather(1, order)
    )
    kept = torch.zeros_like(expert, dtype=torch.bool).scatter(1, order, rank < most)
    return kept.view(groups, tokens, top_k) & selected

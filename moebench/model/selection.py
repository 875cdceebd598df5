"""The selection of experts: within groups, from a mask, up to a capacity, and its odds."""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Worth = Literal["top_two", "max", "share"]


def within_top_groups(
    scores: Float[Tensor, "*batch experts"],
    expert_groups: int,
    top_groups: int,
    worth: Worth = "top_two",
    top_k: int = 2,
) -> Float[Tensor, "*batch experts"]:
    """The scores, with -inf for experts outside each token's best `top_groups` groups of experts.

    A group is `experts / expert_groups` consecutive experts. Groups rank by the sum of their
    highest scores: of the `top_two` (DeepSeek-V3, arXiv 2412.19437, section 2.1.2, where a group is
    a node), of one (`max`, DeepSeek-V2, arXiv 2405.04434, section 2.2.2), or of a token's `share`
    of experts in each of its groups, top_k // top_groups (Megatron-LM, `group_limited_topk` in
    `megatron/core/transformer/moe/moe_utils.py`).
    """
    grouped = scores.unflatten(-1, (expert_groups, -1))
    summed = {"top_two": 2, "max": 1, "share": max(1, top_k // top_groups)}[worth]
    rank = grouped.topk(min(summed, grouped.shape[-1]), dim=-1).values.sum(-1)
    best = rank.topk(top_groups, dim=-1).indices
    inside = torch.zeros_like(rank, dtype=torch.bool).scatter(-1, best, True)
    return grouped.masked_fill(~inside.unsqueeze(-1), -math.inf).flatten(-2)


def in_turn(
    logits: Float[Tensor, "sequences tokens experts"], top_k: int
) -> Float[Tensor, "sequences tokens experts"]:
    """Scores whose top-k are the experts in turn: those of token t are t k, t k + 1, ... modulo E.

    Each sequence begins with expert 0, so that no split of a step changes it. Its load is even
    where E divides its tokens times k. (torchtitan `_debug_force_load_balance_routing`, which
    counts the tokens of a pass.)
    """
    tokens, experts = logits.shape[-2:]
    expert = torch.arange(experts, device=logits.device)
    start = top_k * torch.arange(tokens, device=logits.device)
    wait = (expert - start[:, None]) % experts
    return -wait.to(logits.dtype).expand_as(logits)


def odds(
    clean: Float[Tensor, "*batch experts"],
    noisy: Float[Tensor, "*batch experts"],
    spread: Float[Tensor, "*batch experts"],
    top_k: int,
) -> Float[Tensor, "*batch experts"]:
    """The probability that an expert is among a token's top-k if its noise alone is drawn again.

        P_i = Phi((clean_i - t_i) / spread_i),  t_i the k-th largest noisy logit of the others
                                                                    (arXiv 1701.06538, Eq. 8-9)

    It is 1 where all experts are selected. Its sum over tokens is a load with a gradient.

    Args:
        clean, noisy: logits before and after the noise.
        spread: the deviation of the noise.
    """
    if top_k >= clean.shape[-1]:
        return torch.ones_like(clean)
    best = noisy.topk(top_k + 1, dim=-1).values
    last, next_one = best[..., -2:-1], best[..., -1:]
    threshold = torch.where(noisy >= last, next_one, last)  # without the expert's own logit
    return torch.special.ndtr((clean - threshold) / spread)


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

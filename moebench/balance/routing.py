"""What a forward pass says about its routers: sums over tokens, because sums add.

Passes, ranks and layers are put together by adding or stacking these tensors; nothing is averaged
before every token is in.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Routing(NamedTuple):
    """All MoE layers of one forward pass.

    Attributes:
        expert_index: [layers, sequences, tokens, top_k] int, the experts that were selected.
        counts: [layers, sequences, experts] assignments, detached.
        prob_mass: [layers, sequences, experts] sum over tokens of the full router distribution; it
            carries the gradient.
        logsumexp_sq: [layers, sequences] sum over tokens of logsumexp(router_logits)^2.
        topk_mass: [layers, sequences] sum over tokens of the probability of the selected experts,
            detached; None where a model does not say it.
    """

    expert_index: Int[Tensor, "layers sequences tokens top_k"]
    counts: Tensor
    prob_mass: Float[Tensor, "layers sequences experts"]
    logsumexp_sq: Float[Tensor, "layers sequences"]
    topk_mass: Float[Tensor, "layers sequences"] | None = None


def observe(
    router_logits: Float[Tensor, "sequences tokens experts"],
    router_probs: Float[Tensor, "sequences tokens experts"],
    expert_index: Int[Tensor, "sequences tokens top_k"],
) -> Routing:
    """The routing of one layer, with a leading layer axis of length 1.

    Args:
        router_logits: what the router computed; sums over tokens are taken in fp32 or wider.
        router_probs: its full distribution over the experts; rows sum to 1.
        expert_index: the experts that each token was sent to.
    """
    wide = torch.promote_types(router_probs.dtype, torch.float32)
    router_logits, router_probs = router_logits.to(wide), router_probs.to(wide)
    sequences, experts = router_probs.shape[0], router_probs.shape[-1]
    flat = expert_index.reshape(sequences, -1)
    # scatter_add, since bincount would synchronise with the host on a GPU
    counts = torch.zeros(sequences, experts, dtype=flat.dtype, device=flat.device)
    counts = counts.scatter_add(1, flat, torch.ones_like(flat))
    return Routing(
        expert_index=expert_index[None],
        counts=counts[None],
        prob_mass=router_probs.sum(1)[None],
        logsumexp_sq=router_logits.logsumexp(-1).square().sum(1)[None],
        topk_mass=router_probs.detach().gather(-1, expert_index).sum((1, 2))[None],
    )


def detached(routing: Routing) -> Routing:
    """The same routing without gradients."""
    return Routing(*(None if each is None else each.detach() for each in routing))  # pyright: ignore


def join(parts: Sequence[Routing], *, along: str) -> Routing:
    """One routing of several, put together along `"layers"` or along `"sequences"`."""
    axis = {"layers": 0, "sequences": 1}[along]
    joined = (
        None if any(each is None for each in column) else torch.cat(column, axis)  # pyright: ignore
        for column in zip(*parts, strict=True)
    )
    return Routing(*joined)  # pyright: ignore[reportArgumentType]

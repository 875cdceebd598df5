"""What a forward pass says about its routers: sums over tokens, because sums add.

Passes, ranks and layers are put together by adding or stacking these tensors; nothing is averaged
before every token is in.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moebench.balance.top_experts import top_experts

PADDING = -1  # expert_index of a token that is none


class Routing(NamedTuple):
    """All MoE layers of one forward pass.

    Attributes:
        expert_index: [layers, sequences, tokens, top_k] int, the experts that were selected; -1
            where a token is padding, and where it gets fewer experts.
        counts: [layers, sequences, experts] assignments, detached.
        prob_mass: [layers, sequences, experts] sum over tokens of the full router distribution; it
            carries the gradient.
        logsumexp_sq: [layers, sequences] sum over tokens of logsumexp(router_logits)^2.
        topk_mass: [layers, sequences] sum over tokens of the probability of the selected experts,
            detached; None where a model does not say it.
        weights: [layers, sequences, tokens, top_k] probability of each selected expert, with the
            gradient and 0 for padding; None where a model does not say it.
        tokens: [sequences] tokens that are no padding; None where none is.
        own_index: as `expert_index`, of the selection that f counts, where that is another than the
            actual one (a bias, a factor, groups of experts, or first choices alone); else None.
        own_counts: as `counts`, of that selection; else None.
        moved: [layers, sequences] assignments to experts that are not among those of the token's
            highest scores; None where nothing but the scores selects.
        dropped: [layers, sequences] assignments over an expert's capacity, which are in `counts`
            and have no weight; None where nothing is dropped.
        reserved: [layers, sequences] rows that the capacities of all experts reserve, for each
            sequence its part of its group's; None where nothing is dropped.
        logits: [layers, sequences, tokens, experts] of the router, with the gradient. None unless a
            method reads it.
        scores: what the gate made of the logits, before any bias; likewise.
        outputs: [layers, sequences, tokens, top_k, d_model] of each selected expert, not weighted;
            with the gradient. None unless a method reads it.
        soft_counts: [layers, sequences, experts] sum over tokens of the probability that an expert
            is selected, if its noise is drawn again; with the gradient. None unless a method reads
            it.
    """

    expert_index: Int[Tensor, "layers sequences tokens top_k"]
    counts: Tensor
    prob_mass: Float[Tensor, "layers sequences experts"]
    logsumexp_sq: Float[Tensor, "layers sequences"]
    topk_mass: Float[Tensor, "layers sequences"] | None = None
    weights: Float[Tensor, "layers sequences tokens top_k"] | None = None
    tokens: Int[Tensor, " sequences"] | None = None
    own_index: Int[Tensor, "layers sequences tokens own"] | None = None
    own_counts: Tensor | None = None
    moved: Int[Tensor, "layers sequences"] | None = None
    dropped: Int[Tensor, "layers sequences"] | None = None
    reserved: Float[Tensor, "layers sequences"] | None = None
    logits: Float[Tensor, "layers sequences tokens experts"] | None = None
    scores: Float[Tensor, "layers sequences tokens experts"] | None = None
    outputs: Float[Tensor, "layers sequences tokens top_k d_model"] | None = None
    soft_counts: Float[Tensor, "layers sequences experts"] | None = None


def observe(
    router_logits: Float[Tensor, "sequences tokens experts"],
    router_probs: Float[Tensor, "sequences tokens experts"] | None = None,
    expert_index: Int[Tensor, "sequences tokens top_k"] | None = None,
    *,
    top_k: int | None = None,
    mask: Bool[Tensor, "sequences tokens"] | None = None,
    selected: Bool[Tensor, "sequences tokens top_k"] | None = None,
) -> Routing:
    """The routing of one layer, with a leading layer axis of length 1.

    Args:
        router_logits: what the router computed; sums over tokens are taken in fp32 or wider.
        router_probs: its full distribution over the experts, rows summing to 1; None: the softmax.
        expert_index: the experts that each token was sent to; None: the `top_k` most probable.
        top_k: needed where `expert_index` is None.
        mask: False where a token is padding, which then counts nowhere, whatever it holds: NaN or
            an index that is none gives the loss and the gradient of the other tokens.
        selected: False where an entry of `expert_index` is none; None: all are experts.
    """
    wide = torch.promote_types(router_logits.dtype, torch.float32)
    router_logits = router_logits.to(wide)
    router_probs = None if router_probs is None else router_probs.to(wide)
    real, tokens = None, None
    if mask is not None:
        assert selected is None, "padding of tokens with fewer experts"
        # replaced before any function of it, since the gradient of NaN times 0 is NaN
        real, tokens = mask[..., None], mask.sum(1)
        router_logits = router_logits.where(real, 0)
        router_probs = None if router_probs is None else router_probs.where(real, 0)
        expert_index = None if expert_index is None else expert_index.where(real, 0)
    router_probs = router_logits.softmax(-1) if router_probs is None else router_probs
    if expert_index is None:
        assert top_k is not None, "expert_index or top_k"
        expert_index = top_experts(router_probs, top_k)
    weights = router_probs.gather(-1, expert_index)
    square = router_logits.logsumexp(-1).square()
    marked = expert_index
    if selected is not None:
        weights = weights.where(selected, 0)
        marked = expert_index.where(selected, PADDING)
    if mask is not None and real is not None:
        router_probs, weights = router_probs.where(real, 0), weights.where(real, 0)
        square, selected = square.where(mask, 0), real.expand_as(expert_index)
        marked = expert_index.where(real, PADDING)
    return Routing(
        expert_index=marked[None],
        counts=counted(expert_index, router_probs.shape[-1], selected)[None],
        prob_mass=router_probs.sum(1)[None],
        logsumexp_sq=square.sum(1)[None],
        topk_mass=weights.detach().sum((1, 2))[None],
        weights=weights[None],
        tokens=tokens,
    )


def counted(
    expert_index: Int[Tensor, "sequences tokens slots"],
    experts: int,
    selected: Bool[Tensor, "sequences tokens slots"] | None = None,
) -> Int[Tensor, "sequences experts"]:
    """How often each sequence selects each of the `experts`.

    Args:
        selected: False where an entry of `expert_index` is none; None: all are experts.
    """
    flat = expert_index.flatten(1)
    ones = torch.ones_like(flat) if selected is None else selected.flatten(1).to(flat.dtype)
    # scatter_add, since bincount would synchronise with the host on a GPU
    counts = torch.zeros(len(flat), experts, dtype=flat.dtype, device=flat.device)
    return counts.scatter_add(1, flat, ones)


def moved_from(
    own_index: Int[Tensor, "sequences tokens top_k"],
    expert_index: Int[Tensor, "sequences tokens slots"],
) -> Int[Tensor, " sequences"]:
    """Assignments to experts that are not in a token's `own_index`.

    Args:
        expert_index: the experts that were selected; a slot of -1 holds none and does not count.
    """
    same = (expert_index[..., :, None] == own_index[..., None, :]).any(-1)
    return ((expert_index != PADDING) & ~same).sum((1, 2))


def no_routing(sequences: int, tokens: int, experts: int, *, like: Tensor) -> Routing:
    """The routing of a model without routers: of no layer."""
    none = like.new_zeros(0, sequences, tokens, 0)
    return Routing(
        expert_index=none.long(),
        counts=like.new_zeros(0, sequences, experts, dtype=torch.int64),
        prob_mass=like.new_zeros(0, sequences, experts),
        logsumexp_sq=like.new_zeros(0, sequences),
        topk_mass=like.new_zeros(0, sequences),
        weights=none,
    )


def of_own_scores(routing: Routing) -> Routing:
    """The routing with the selection that the f of a balance loss counts.

    By default that is what the scores alone would have selected (DeepSeek-V3, Eq. 18; Megatron-LM):
    a loss evens out the scores, whatever a bias or groups of experts make of them, and would have
    nothing to do once a bias has evened out the load. The load that is measured, and that moves a
    bias, is that of the actual selection.
    """
    if routing.own_index is None or routing.own_counts is None:
        return routing
    return routing._replace(expert_index=routing.own_index, counts=routing.own_counts)


def selected_mass(routing: Routing) -> Float[Tensor, "layers sequences experts"]:
    """`prob_mass` of the distribution renormalised over each token's selected experts.

    Several systems have met f with it (MaxText before its fix, nanoMoE). It tells a router nothing
    of the experts that it did not select. Carries the gradient.
    """
    assert routing.weights is not None, "the model does not say its routers' weights"
    whole = routing.weights.sum(-1, keepdim=True)
    share = routing.weights / whole.where(whole > 0, 1)  # padding has no weight at all
    index = routing.expert_index.clamp(min=0).flatten(2)
    return torch.zeros_like(routing.prob_mass).scatter_add(2, index, share.flatten(2))


def detached(routing: Routing) -> Routing:
    """The same routing without gradients."""
    return Routing(*(None if field is None else field.detach() for field in routing))  # pyright: ignore


def join(parts: Sequence[Routing], *, along: str) -> Routing:
    """One routing of several, put together along `"layers"` or along `"sequences"`."""
    if len(parts) == 1:
        return parts[0]
    axis = {"layers": 0, "sequences": 1}[along]
    joined = {
        name: None if any(field is None for field in column) else torch.cat(column, axis)  # pyright: ignore
        for name, *column in zip(Routing._fields, *parts, strict=True)
        if name != "tokens"  # which has no layers
    }
    tokens = [part.tokens for part in parts if part.tokens is not None]
    if along == "layers" or not tokens:
        return Routing(**joined, tokens=tokens[0] if tokens else None)  # pyright: ignore
    assert len(tokens) == len(parts), "either all parts say how many tokens are no padding or none"
    return Routing(**joined, tokens=torch.cat(tokens))  # pyright: ignore

"""Gates: from a router's logits to scores, weights and probabilities.

A gate computes three things: the `scores` that select experts, the `values` that weight their
outputs, and the `probs` that are balanced, whose rows sum to 1. Only for softmax are they the same.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

Name = Literal["softmax", "topk_softmax", "sigmoid", "sqrt_softplus", "sparsemax", "relu"]


class Gated(NamedTuple):
    """The result of a gate, [sequences, tokens, experts] each.

    Attributes:
        scores: experts are selected by these.
        values: weights of the selected experts' outputs, before any renormalisation.
        probs: the distribution that is balanced.
        shared: [sequences, tokens, shared] values of shared experts, before any renormalisation;
            None: they are not in the gate.
    """

    scores: Tensor
    values: Tensor
    probs: Tensor
    shared: Tensor | None = None


def gated(
    name: Name,
    logits: Float[Tensor, "sequences tokens experts"],
    mask: Bool[Tensor, " experts"] | None = None,
    *,
    by_logits: bool = False,
) -> Gated:
    """Apply a gate.

    `softmax`: arXiv 2501.11873, Eq. 1. `topk_softmax`: selects by logits; the softmax over the
    selected logits equals the renormalised softmax over all. `sigmoid`: DeepSeek-V3, Eq. 16.
    `sqrt_softplus`: sqrt(log(1 + exp z)), as in Megatron-LM. `sparsemax`: the function below; an
    expert of probability 0 is not selected. `relu`: ReMoE (arXiv 2412.14711); all experts above 0
    are selected.

    Args:
        mask: False for an expert that is not available.
        by_logits: whether the scores are the logits themselves, for any gate.
    """
    available = logits if mask is None else logits.masked_fill(~mask, -math.inf)
    if by_logits:
        return gated(name, logits, mask)._replace(scores=available)
    if name in ("softmax", "topk_softmax"):
        probs = available.softmax(-1)
        return Gated(probs if name == "softmax" else available, probs, probs)
    if name == "sparsemax":
        probs = sparsemax(logits if mask is None else logits.masked_fill(~mask, -1e9))
        return Gated(probs, probs, probs)
    function = _FUNCTIONS[name]
    # an infinite logit has no gradient here, so the mask is applied to the result
    scores = function(logits) if mask is None else function(logits) * mask
    total = scores.sum(-1, keepdim=True)
    return Gated(scores, scores, scores / total.where(total > 0, 1))


def sparsemax(logits: Float[Tensor, "*rows experts"]) -> Float[Tensor, "*rows experts"]:
    """The Euclidean projection of each row on the simplex; differentiable where it is smooth.

        p_i = max(0, z_i - tau),  tau such that sum p = 1          (arXiv 1602.02068, Eq. 2-4)

    Its Jacobian is diag(s) - s s^T / |s| with s the 0/1 support, so an expert without a share gets
    no gradient.
    """
    # the projection does not see a shift, and large logits would lose the 1 in their sums
    z = logits - logits.detach().amax(-1, keepdim=True)
    falling = z.sort(dim=-1, descending=True).values
    total = falling.cumsum(-1)
    rank = torch.arange(1, z.shape[-1] + 1, dtype=z.dtype, device=z.device)
    size = (1 + rank * falling > total).sum(-1, keepdim=True)
    tau = (total.gather(-1, size - 1) - 1) / size
    return (z - tau).clamp(min=0)


def of_shared(
    name: Name,
    shared: Float[Tensor, "sequences tokens shared"],
    logits: Float[Tensor, "sequences tokens experts"],
) -> Float[Tensor, "sequences tokens shared"]:
    """The values of shared experts in the unit of the routed ones', before any renormalisation.

    A softmax is over the routed experts alone, so that renormalised weights are the softmax over
    the selected and the shared experts.
    """
    if name in ("softmax", "topk_softmax"):
        return (shared - logits.logsumexp(-1, keepdim=True)).exp()
    return _FUNCTIONS[name](shared)


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "sqrt_softplus": lambda logits: F.softplus(logits).sqrt(),
    "relu": torch.relu,
}

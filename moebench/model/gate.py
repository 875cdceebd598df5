"""What a gate makes of a router's logits.

What selects an expert (`scores`), what weighs its output (`values`) and what is balanced (`probs`,
whose rows sum to 1) are three things, which are one for softmax alone.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from moebench.balance.sparsemax import sparsemax

Name = Literal["softmax", "topk_softmax", "sigmoid", "sqrt_softplus", "sparsemax", "relu"]


class Gated(NamedTuple):
    """What a gate makes of its logits, [sequences, tokens, experts] each.

    Attributes:
        scores: what experts are selected by.
        values: what the outputs of the selected ones are scaled by, before any renormalisation.
        probs: the distribution that is balanced.
    """

    scores: Tensor
    values: Tensor
    probs: Tensor


def gated(
    name: Name,
    logits: Float[Tensor, "sequences tokens experts"],
    mask: Bool[Tensor, " experts"] | None = None,
) -> Gated:
    """The scores of a gate.

    `softmax`: arXiv 2501.11873, Eq. 1. `topk_softmax`: selects by logits; the softmax over the
    selected is what the softmax over all becomes when it is renormalised. `sigmoid`: DeepSeek-V3,
    Eq. 16. `sqrt_softplus`: sqrt(log(1 + exp z)), as Megatron-LM has it. `sparsemax`: see there;
    an expert without a share is not selected. `relu`: ReMoE (arXiv 2412.14711); all experts above 0
    are selected.

    Args:
        mask: False for an expert that is not there.
    """
    there = logits if mask is None else logits.masked_fill(~mask, -math.inf)
    if name in ("softmax", "topk_softmax"):
        probs = there.softmax(-1)
        return Gated(probs if name == "softmax" else there, probs, probs)
    if name == "sparsemax":
        probs = sparsemax(logits if mask is None else logits.masked_fill(~mask, -1e9))
        return Gated(probs, probs, probs)
    function = _FUNCTIONS[name]
    # an infinite logit would have no gradient here, so what is not there is taken away after
    scores = function(logits) if mask is None else function(logits) * mask
    whole = scores.sum(-1, keepdim=True)
    return Gated(scores, scores, scores / whole.where(whole > 0, 1))


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "sqrt_softplus": lambda logits: F.softplus(logits).sqrt(),
    "relu": torch.relu,
}

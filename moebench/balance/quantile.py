"""Quantile balancing: the bias at which every expert would have had its share of the last step.

Notation: s_te the score of token t for expert e, b_e the expert's bias, T tokens, E experts, k
experts a token. A token's threshold is what an expert must beat to be selected, and an expert's
margin over it is what the expert's bias may lose:

    alpha_t = the (k+1)-th largest of s_te + b_e over e
    m_te    = s_te - alpha_t
    b_e     = -(the (floor(T k / E) + 1)-th largest of m_te over t),  then b <- b - mean(b)

(Su, kexue.fm 11619.) There are no hyper-parameters. Peers differ in what s is, and in whose tokens
the quantile is of:

    Megatron-LM     raw logits, whatever the gate (`qb_dual_update` in
                    `megatron/core/transformer/moe/moe_utils.py`, whose beta is -b); the mean of the
                    quantiles of micro-batches and ranks, which is not the quantile of the step
    Kimi K3         sigmoid scores (report, section 2.3.3); the step's quantile, from histograms
    here            the gate's scores, or raw logits with `logits`; the step's quantile, exactly
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from moebench.balance.bias import Biased, BiasState
from moebench.balance.routing import Routing
from moebench.errors import ConfigError


@dataclass(frozen=True)
class Quantile(Biased):
    """Selection by scores plus the bias that would have evened the last step.

    Attributes:
        decay: of a moving average of the bias, b <- decay b + (1 - decay) (its new value); 0 by
            default, as in the source.
        logits: whether s are raw logits, in the update and in the selection (Megatron-LM), in place
            of the gate's scores.
    """

    decay: float = 0.0
    logits: int = 0

    observes: ClassVar[frozenset[str]] = frozenset({"scores"})

    @property
    def by_logits(self) -> bool:
        return bool(self.logits)

    def update(
        self,
        state: BiasState,
        routing: Routing,
        mask: Bool[Tensor, "layers experts"] | None = None,
    ) -> BiasState:
        assert routing.scores is not None
        new = evening(routing.scores, state.expert_bias, routing.expert_index.shape[-1], mask)
        return BiasState(self.decay * state.expert_bias + (1 - self.decay) * new)


def evening(
    scores: Float[Tensor, "layers sequences tokens experts"],
    bias: Float[Tensor, "layers experts"],
    top_k: int,
    mask: Bool[Tensor, "layers experts"] | None = None,
) -> Float[Tensor, "layers experts"]:
    """The bias that would have evened a step in which experts were selected with another one.

    Args:
        scores: of the step, before any bias.
        bias: of the step.
        mask: False for an expert that is not there.
    """
    scores = scores.flatten(1, 2)
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None], -math.inf)
    return quantile_bias(margins(scores, bias[:, None], top_k), top_k, mask).float()


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
    margin: Float[Tensor, "*layers tokens experts"],
    top_k: int,
    mask: Bool[Tensor, "*layers experts"] | None = None,
) -> Float[Tensor, "*layers experts"]:
    """The next bias, from the margins of all tokens of a step; its mean is 0.

    Args:
        mask: False for an expert that is not there: it has no share of the tokens, and no bias.
            Where no expert is left over, no bias moves anything, and all are 0.
    """
    tokens, experts = margin.shape[-2:]
    if mask is None:
        rank = tokens * top_k // experts + 1
        bias = -margin.kthvalue(tokens - rank + 1, dim=-2).values
        return bias - bias.mean(-1, keepdim=True)
    there = mask.sum(-1, keepdim=True)
    rank = (
        (tokens * top_k // there).clamp(max=tokens - 1).expand_as(mask)
    )  # that of the largest is 0
    ordered = margin.where(mask[..., None, :], -math.inf).sort(-2, descending=True).values
    bias = -ordered.gather(-2, rank[..., None, :]).squeeze(-2)
    bias = bias.where(mask & bias.isfinite(), 0)
    return (bias - bias.sum(-1, keepdim=True) / there) * mask

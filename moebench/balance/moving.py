"""Balance within a sequence, without a loss: a shift of scores that earlier tokens cause.

Notation: s_te the score of token t of a sequence for expert e, E experts, k of them a token, W an
average over the tokens of the sequence so far, weighted by g^(t - t') and normalised.

    moving quantile   F_te(x) = W over t' <= t of [s_t'e <= x], from bins of 1 / n
                      r_te    = the first x with F_te(x) >= 1 - k / E, the middle of its bin
                      select by s_te - lambda r_te + b_e              (Su, kexue.fm 11760, "MQB")
    causal bias       select by s_te - lambda (W over t' < t of s_t'e)        (jonathanc.net)

For the moving quantile, g = 0.99 and n = 100 are the source's, and lambda = 0.3 is what it takes to
cost nothing; at 1 each sequence is balanced at all costs. b is the bias of quantile balancing
(`quantile.py`) of the shifted scores over the step, by which the source ends, too. Both sources'
averages are not normalised in the first tokens; here they are, so that F reaches 1 at once.

The source of the causal bias was had in part: its averages in words, and no constants. lambda and g
are ours. Its second form, a bias that each token's selection moves, is left out: it is a recurrence
that no parallel pass computes.

No token's experts depend on later tokens, in training and in evaluation. Weights and P are those of
the scores without the shift.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from moebench.balance.bias import Biased, BiasState
from moebench.balance.method import Method
from moebench.balance.quantile import evening
from moebench.balance.routing import Routing


@torch.no_grad()
def moving_quantile(
    scores: Float[Tensor, "*rows tokens experts"], share: float, memory: float, bins: int
) -> Float[Tensor, "*rows tokens experts"]:
    """The quantile `1 - share` of each expert's scores up to each token, r.

    Args:
        scores: from 0 to 1.
        share: of the tokens that an expert is to have.
        memory: g.
        bins: n, into which scores are sorted.
    """
    tokens = scores.shape[-2]
    place = (scores * bins).floor().clamp(0, bins - 1)
    below = place.unsqueeze(-1) <= torch.arange(bins, device=scores.device)
    weight = averages(tokens, memory, own=True, like=scores)
    spread = weight @ below.to(scores.dtype).flatten(-2)
    spread = spread.unflatten(-1, (scores.shape[-1], bins))
    return ((spread < 1 - share).sum(-1) + 0.5) / bins


def averages(
    tokens: int, memory: float, *, own: bool, like: Tensor
) -> Float[Tensor, "tokens tokens"]:
    """Row t has the weights of the tokens so far, which sum to 1; 0 before there is one.

    Args:
        own: whether a token counts itself.
    """
    place = torch.arange(tokens, device=like.device)
    age = place[:, None] - place
    seen = age >= 0 if own else age > 0
    weight = torch.where(seen, memory ** age.clamp(min=0).to(like.dtype), 0)
    return weight / weight.sum(-1, keepdim=True).clamp(min=torch.finfo(like.dtype).tiny)


@dataclass(frozen=True)
class MovingQuantile(Biased):
    """Moving quantile balancing (kexue.fm 11760), see the module.

    Attributes:
        strength: lambda.
        memory: g.
        bins: n.
    """

    strength: float = 0.3
    memory: float = 0.99
    bins: int = 100

    observes: ClassVar[frozenset[str]] = frozenset({"scores"})

    def shift(self, scores: Float[Tensor, "*rows tokens experts"], top_k: int) -> Tensor:
        share = top_k / scores.shape[-1]
        return -self.strength * moving_quantile(scores, share, self.memory, self.bins)

    def update(
        self,
        state: BiasState,
        routing: Routing,
        mask: Bool[Tensor, "layers experts"] | None = None,
    ) -> BiasState:
        assert routing.scores is not None
        top_k = routing.expert_index.shape[-1]
        shifted = routing.scores + self.shift(routing.scores, top_k)
        return BiasState(evening(shifted, state.expert_bias, top_k, mask))


@dataclass(frozen=True)
class CausalBias(Method):
    """A shift by the average score of earlier tokens of the sequence, see the module.

    Attributes:
        strength: lambda; ours.
        memory: g; ours.
    """

    strength: float = 1.0
    memory: float = 0.99

    def shift(self, scores: Float[Tensor, "*rows tokens experts"], top_k: int) -> Tensor:
        weight = averages(scores.shape[-2], self.memory, own=False, like=scores)
        return -self.strength * (weight @ scores)

"""Expert thresholds: a token goes to every expert whose score is above that expert's threshold.

Notation: s_te the score of token t for expert e, T tokens of a step, E experts, k experts a token
on average, d the decay.

    t -> e  where s_te > c_e
    q_e   = the (floor(T k / E) + 1)-th largest of s_te over t, the 1 - k/E quantile
    c     <- the moving average of q, d c + (1 - d) q, corrected for its start

Expert Threshold routing (arXiv 2603.11535) reads raw logits, with d = 0.99, and weighs by sigmoid.
Quantile balancing with dynamic activation (Su, kexue.fm 11626) reads the gate's scores, with
d = 0.9. Both thresholds are those of Expert Choice on the step, but of the steps before: no token
sees another one, and evaluation selects like training.

Differences from the sources: q is the quantile of the whole step, over all passes and ranks, where
both take the mean over micro-batches. Before the first update there is no threshold, and each token
takes its top-k: the first source begins with Expert Choice for some steps, which is not causal, and
the second with the quantile of a normal distribution.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from moebench.balance.method import Method, Steering
from moebench.balance.routing import Routing
from moebench.errors import ConfigError


class ThresholdState(NamedTuple):
    """A moving average and its weight.

    Attributes:
        total: [layers, experts] sum of the weighted quantiles.
        weight: of these, 0 before the first step; `total / weight` is the threshold.
    """

    total: Float[Tensor, "layers experts"]
    weight: Float[Tensor, ""]


@dataclass(frozen=True)
class Threshold(Method):
    """Selection by thresholds that follow the quantiles of earlier steps.

    Attributes:
        decay: d.
        top_k: k.
        logits: whether s are raw logits, in place of the gate's scores.
    """

    decay: float = 0.99
    top_k: int = 2
    logits: int = 0

    State: ClassVar[type] = ThresholdState
    observes: ClassVar[frozenset[str]] = frozenset({"scores"})

    @property
    def by_logits(self) -> bool:
        return bool(self.logits)

    def begin(
        self, layers: int, experts: int, device: torch.device | None = None
    ) -> ThresholdState:
        zero = torch.zeros(layers, experts, device=device)
        return ThresholdState(zero, zero[0, 0])

    def steering(self, state: ThresholdState) -> Steering:
        """A bias of minus the threshold; NaN before there is one."""
        return Steering(bias=-state.total / state.weight)

    def update(
        self,
        state: ThresholdState,
        routing: Routing,
        mask: Bool[Tensor, "layers experts"] | None = None,
    ) -> ThresholdState:
        assert routing.scores is not None
        quantile = upper_quantile(routing.scores.flatten(1, 2), self.top_k)
        keep = 1 - self.decay
        return ThresholdState(
            self.decay * state.total + keep * quantile.float(), self.decay * state.weight + keep
        )

    def metrics(self, state: ThresholdState) -> dict[str, Tensor]:
        """The mean threshold, over layers and experts."""
        return {"threshold": (state.total / state.weight).mean()}


@torch.no_grad()
def upper_quantile(
    scores: Float[Tensor, "*layers tokens experts"], top_k: int
) -> Float[Tensor, "*layers experts"]:
    """The largest score of each expert below its floor(T k / E) largest ones.

    Raises:
        ConfigError: where every token goes to every expert, so that there is no threshold.
    """
    tokens, experts = scores.shape[-2:]
    if top_k >= experts:
        raise ConfigError(
            f"top_k={top_k}: a threshold needs an expert that is not selected; take fewer than "
            f"{experts}"
        )
    rank = tokens * top_k // experts + 1
    return scores.kthvalue(tokens - rank + 1, dim=-2).values

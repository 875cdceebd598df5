"""The balance loss of a snippet that circulates in web articles on arXiv 2501.11873, made to run.

Notation, for one layer and one call: m_i = 1 if any token selected expert i, else 0; w_i the mean,
over the tokens that selected expert i, of its weight, renormalised over each token's selection.

    at every 128th call, L = sum_i M_i W_i,  M and W the means of m and w over the last 128 calls
    at every other call, L = 0

It has the symbols of the paper's loss and not its meaning: M does not tell an expert with one token
from one with all, so W alone has something to say, and at a full batch M is 1 everywhere.

What was repaired, so that it runs at all:
1. buffers kept the graphs of earlier calls, and the second backward raised: here the W of earlier
   calls is detached, so the gradient is that of the last call, divided by 128;
2. `micro_batch_count = 0` on a registered buffer raised TypeError: here the count is a tensor;
3. an expert without a token had a mean over nothing, nan: here it is 0.
What was left: no all-reduce, no factor E, no gradient but at every 128th call. A call is an
optimizer step, as the snippet steps after every micro-batch.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moebench.balance.method import Method
from moebench.balance.routing import Routing
from moebench.errors import ConfigError


class SnippetState(NamedTuple):
    """What was buffered since the last call with a loss.

    Attributes:
        used: [layers, experts] sum of m.
        weight: [layers, experts] sum of w.
        calls: how many.
    """

    used: Float[Tensor, "layers experts"]
    weight: Float[Tensor, "layers experts"]
    calls: Int[Tensor, ""]


@dataclass(frozen=True)
class Snippet(Method):
    """The circulating snippet.

    Attributes:
        weight: of its loss in the objective.
        every: calls from one loss to the next.
    """

    weight: float = 0.01
    every: int = 128

    State: ClassVar[type] = SnippetState

    def begin(self, layers: int, experts: int, device: torch.device | None = None) -> SnippetState:
        zero = torch.zeros(layers, experts, device=device)
        return SnippetState(zero, zero, torch.zeros((), dtype=torch.int64, device=device))

    def penalty(self, state: SnippetState, routing: Routing, total: int) -> Tensor:
        """Raises ConfigError for a pass that is not the whole step: a mean over the tokens of an
        expert is no sum over passes."""
        _, sequences, tokens, _ = routing.expert_index.shape
        if sequences * tokens != total:
            raise ConfigError(
                f"a pass of {sequences} of the step's {total // tokens} sequences: the snippet "
                "takes a step as one pass; do not split the step"
            )
        used, mean = _used_and_mean(routing)
        value = (state.used + used) * (state.weight + mean) / self.every**2
        acts = state.calls + 1 == self.every
        return self.weight * value.sum() * acts

    def update(
        self,
        state: SnippetState,
        routing: Routing,
        mask: Bool[Tensor, "layers experts"] | None = None,
    ) -> SnippetState:
        used, mean = _used_and_mean(routing)
        keep = state.calls + 1 < self.every
        return SnippetState(
            (state.used + used) * keep,
            (state.weight + mean.detach()) * keep,
            (state.calls + 1) * keep,
        )


def _used_and_mean(routing: Routing) -> tuple[Tensor, Tensor]:
    assert routing.weights is not None
    share = (routing.weights / routing.weights.sum(-1, keepdim=True)).flatten(1, 2)
    counts = routing.counts.sum(1)
    # a token's experts differ, so this scatter adds nothing, and the sum has an order on a GPU
    by_token = share.new_zeros(*share.shape[:-1], counts.shape[-1])
    total = by_token.scatter(-1, routing.expert_index.flatten(1, 2), share).sum(1)
    return (counts > 0).to(total.dtype), total / counts.clamp(min=1)

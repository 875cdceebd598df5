"""Loss-free balancing: experts are selected by their scores plus a bias that follows the load.

Notation: c_i assignments to expert i in a group of tokens, c their mean, e_i = c - c_i.

    select by s_i + b_i, weight by s_i;  b_i <- b_i + u * sign(e_i)          (arXiv 2408.15664)

The bias moves once per optimizer step, by the counts of all passes and ranks. The source has two
variants, b_i + u * e_i and a multiplicative bias s_i * b_i, and does not state the unit of e_i.
Here the proportional step is u * e_i / c, which does not depend on the number of tokens in a group.

With several groups in a step, the bias moves by the mean of their moves. This is our reading of
arXiv 2501.11873, Table 1, where a bias has a balance batch size. Where groups disagree, their signs
partly cancel.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from moebench.balance.method import Method, Steering
from moebench.balance.routing import Routing


class BiasState(NamedTuple):
    """Attributes: expert_bias: [layers, experts] fp32."""

    expert_bias: Float[Tensor, "layers experts"]


@dataclass(frozen=True)
class Biased(Method):
    """A method whose state has an `expert_bias`, by which scores are moved; it begins at 0."""

    State: ClassVar[type] = BiasState

    def begin(self, layers: int, experts: int, device: torch.device | None = None) -> Any:
        zero = torch.zeros(layers, experts, device=device)
        return self.State(*(zero for _ in self.State._fields))  # pyright: ignore

    def steering(self, state: Any) -> Steering:
        return Steering(bias=state.expert_bias)

    def metrics(self, state: Any) -> dict[str, Tensor]:
        """The largest bias less the smallest, mean over layers."""
        bias = state.expert_bias
        return {"bias_range": (bias.amax(-1) - bias.amin(-1)).mean()}


@dataclass(frozen=True)
class Bias(Biased):
    """The bias of loss-free balancing (arXiv 2408.15664), and its variants.

    Attributes:
        rate: u.
        balance_bsz: sequences in a group.
        proportional: move by u * e_i / c in place of u * sign(e_i).
        multiplicative: select by s_i * b_i, with b_i beginning at 1.
        centred: subtract the mean over experts from each move (torchtitan), so that the sum of the
            biases stays constant. The selection is the same: a shift of all biases changes nothing.
        logits: select by logits plus the bias, z_i + b_i, whatever the gate (Kolibri).
    """

    rate: float = 1e-3
    balance_bsz: int | None = None
    proportional: int = 0
    multiplicative: int = 0
    centred: int = 0
    logits: int = 0

    @property
    def by_logits(self) -> bool:
        return bool(self.logits)

    def begin(self, layers: int, experts: int, device: torch.device | None = None) -> BiasState:
        start = 1.0 if self.multiplicative else 0.0
        return BiasState(torch.full((layers, experts), start, device=device))

    def steering(self, state: BiasState) -> Steering:
        if self.multiplicative:
            return Steering(factor=state.expert_bias)
        return super().steering(state)

    def update(
        self,
        state: BiasState,
        routing: Routing,
        mask: Bool[Tensor, "layers experts"] | None = None,
    ) -> BiasState:
        layers, sequences, experts = routing.counts.shape
        size = sequences if self.balance_bsz is None else self.balance_bsz
        counts = routing.counts.view(layers, sequences // size, size, experts).sum(2)
        there = torch.ones_like(counts[:, :1]) if mask is None else mask[:, None].to(counts.dtype)
        number = there.sum(-1, keepdim=True)
        whole = counts.sum(-1, keepdim=True)
        gap = whole - number * counts  # E e_i: whole numbers, so that no rounding makes a sign
        move = gap / whole if self.proportional else gap.sign().float()
        move = (self.rate * move * there).mean(1)  # an expert that is not there keeps its bias
        if self.centred:
            move = (move - move.sum(-1, keepdim=True) / number[:, 0]) * there[:, 0]
        return BiasState(state.expert_bias + move.float())

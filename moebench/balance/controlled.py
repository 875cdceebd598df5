"""Biases that follow the load by other rules than a step of fixed size.

Notation: c_i assignments to expert i in a step, c their mean, u_i = c_i / c, E experts of which N
compute. Experts are selected by s_i + b_i and weighted by s_i.

    SMEBU   v_i = tanh(kappa (1 - u_i)), d_i = lambda (v_i - mean v)
            m_i <- beta m_i + (1 - beta) d_i,  b_i <- b_i + m_i         (Arcee Trinity, arXiv
            2602.17004; lambda 5e-4, beta 0.5, kappa 2)
    budget  b_i <- b_i + mu (share / N - c_i / sum c) for the N experts that compute; those that
            return their input keep a bias of 0                         (LongCat-Flash, arXiv
            2509.01322, section 2.1.1, where share is K_e / K; its mu was not found)

Both move once per optimizer step, by the counts of all passes and ranks.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from moebench.balance.bias import Biased, BiasState
from moebench.balance.routing import Routing


class MomentumState(NamedTuple):
    """Attributes: expert_bias, momentum: [layers, experts] fp32."""

    expert_bias: Float[Tensor, "layers experts"]
    momentum: Float[Tensor, "layers experts"]


@dataclass(frozen=True)
class Smebu(Biased):
    """Soft-clamped momentum expert bias updates (arXiv 2602.17004), see the module.

    Attributes:
        rate: lambda.
        momentum: beta.
        sharpness: kappa.
    """

    rate: float = 5e-4
    momentum: float = 0.5
    sharpness: float = 2.0

    State: ClassVar[type] = MomentumState

    def update(
        self,
        state: MomentumState,
        routing: Routing,
        mask: Bool[Tensor, "layers experts"] | None = None,
    ) -> MomentumState:
        counts = routing.counts.sum(1).float()
        there = torch.ones_like(counts) if mask is None else mask.float()
        number = there.sum(-1, keepdim=True)
        load = counts * number / counts.sum(-1, keepdim=True)
        clamped = (self.sharpness * (1 - load)).tanh() * there
        step = self.rate * (clamped - clamped.sum(-1, keepdim=True) / number) * there
        momentum = self.momentum * state.momentum + (1 - self.momentum) * step
        return MomentumState(state.expert_bias + momentum, momentum)


@dataclass(frozen=True)
class Budget(Biased):
    """A bias that has a given share of a token's experts compute, see the module.

    Attributes:
        rate: mu.
        share: K_e / K, of a token's experts that compute.
        zero_experts: experts that return their input, the last ones.
    """

    rate: float = 0.1
    share: float = 2 / 3
    zero_experts: int = 0

    def update(
        self,
        state: BiasState,
        routing: Routing,
        mask: Bool[Tensor, "layers experts"] | None = None,
    ) -> BiasState:
        counts = routing.counts.sum(1).float()
        there = torch.ones_like(counts) if mask is None else mask.float()
        computing = counts.shape[-1] - self.zero_experts
        there = there * (torch.arange(counts.shape[-1], device=counts.device) < computing)
        wanted = self.share / there.sum(-1, keepdim=True)
        found = counts / counts.sum(-1, keepdim=True)
        return BiasState(state.expert_bias + self.rate * (wanted - found) * there)

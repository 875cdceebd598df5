"""SwiGLU experts without dropping: sort rows by expert, multiply in groups, restore the order."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from moebench.model.fused import fused_experts
from moebench.model.grouped import combine, dispatch, grouped_mm


class Experts(nn.Module):
    """The routed experts of one layer.

    Args:
        num_experts: number of experts.
        d_model: width of the hidden states.
        expert_dim: hidden width of each expert.
    """

    def __init__(self, num_experts: int, d_model: int, expert_dim: int) -> None:
        super().__init__()
        self.fused = False  # whether the Triton kernels of `fused.py` compute them
        self.up = nn.Parameter(torch.empty(num_experts, d_model, 2 * expert_dim))
        self.down = nn.Parameter(torch.empty(num_experts, expert_dim, d_model))

    def forward(
        self,
        x: Float[Tensor, "rows d_model"],
        expert_index: Int[Tensor, "rows top_k"],
        weights: Float[Tensor, "rows top_k"],
        counts: Int[Tensor, " experts"],
    ) -> Float[Tensor, "rows d_model"]:
        """The weighted sum of each token's selected experts.

        Args:
            x: hidden state of each token.
            expert_index, weights: each token's experts and their weights.
            counts: assignments to each expert.
        """
        order = expert_index.flatten().argsort(stable=True)
        ends = counts.cumsum(0).to(torch.int32)
        if self.fused:
            up, down = self.up.to(x.dtype), self.down.to(x.dtype)
            return fused_experts(x, up, down, weights.flatten(), order, ends)
        place = torch.empty_like(order).scatter(
            0, order, torch.arange(order.shape[0], device=order.device)
        )
        sorted_x = dispatch(x, order, place)
        gate, value = grouped_mm(sorted_x, self.up.to(x.dtype), ends).chunk(2, dim=-1)
        # The weight scales the hidden state: then backward does not need the output.
        scale = weights.flatten().index_select(0, order).to(x.dtype)
        hidden = F.silu(gate) * value * scale[:, None]
        out = grouped_mm(hidden, self.down.to(x.dtype), ends)
        return combine(out, order, place, x.shape[0])


class SharedExpert(nn.Module):
    """A SwiGLU for every token; several shared experts are one that is wider."""

    def __init__(self, d_model: int, width: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.empty(2 * width, d_model))
        self.down = nn.Parameter(torch.empty(d_model, width))

    def forward(
        self,
        x: Float[Tensor, "*rows d_model"],
        weights: Float[Tensor, "*rows shared"] | None = None,
    ) -> Float[Tensor, "*rows d_model"]:
        """The sum of the experts' outputs, each times its weight; None: 1."""
        gate, value = F.linear(x, self.up.to(x.dtype)).chunk(2, dim=-1)
        hidden = F.silu(gate) * value
        if weights is not None:
            of_each = hidden.unflatten(-1, (weights.shape[-1], -1))
            hidden = (of_each * weights.to(x.dtype).unsqueeze(-1)).flatten(-2)
        return F.linear(hidden, self.down.to(x.dtype))

"""SwiGLU experts without dropping: sort rows by expert, multiply in groups, restore the order."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from moebench.model.arms import mapped, shifted
from moebench.model.conversion import Convert, converting
from moebench.model.cpu_experts import cpu_experts
from moebench.model.cpu_products import linear
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
        convert: Convert | None = None,
    ) -> Float[Tensor, "rows d_model"]:
        """The weighted sum of each token's selected experts.

        Args:
            x: hidden state of each token.
            expert_index, weights: each token's experts and their weights.
            convert: a weight to the dtype of `x`.
        """
        convert = convert or converting(x.dtype)
        matrices = convert(self.up), convert(self.down)
        return mixture(x, expert_index, weights, *matrices, fused=self.fused)


def mixture(
    x: Float[Tensor, "rows d_model"],
    expert_index: Int[Tensor, "rows top_k"],
    weights: Float[Tensor, "rows top_k"],
    up: Float[Tensor, "experts d_model twice_expert_dim"],
    down: Float[Tensor, "experts expert_dim d_model"],
    *,
    fused: bool,
) -> Float[Tensor, "rows d_model"]:
    """The weighted sum of each token's selected experts; one operator under vmap.

    Args:
        up, down: weights, in the dtype of `x`.
        fused: whether the Triton kernels compute them.
    """
    return torch.ops.moebench.mixture(x, expert_index, weights, up, down, fused)


def _mixture(
    x: Tensor, expert_index: Tensor, weights: Tensor, up: Tensor, down: Tensor, fused: bool
) -> Tensor:
    keys = expert_index.flatten()
    if keys.is_cuda and len(up) < 2**15:
        keys = keys.to(torch.int16)  # a GPU sorts by a few bits at a time
    keys, order = keys.sort(stable=True)
    experts = torch.arange(len(up), dtype=keys.dtype, device=keys.device)
    ends = torch.searchsorted(keys, experts, right=True, out_int32=True)
    if fused:
        return fused_experts(x, up, down, weights.flatten(), order, ends)
    if x.device.type == "cpu":
        return cpu_experts(x, up, down, weights.flatten(), order, ends)
    numbers = torch.arange(len(order), device=order.device)
    place = torch.empty_like(order).scatter(0, order, numbers)
    row = order // expert_index.shape[1]
    gate, value = grouped_mm(dispatch(x, row, place), up, ends).chunk(2, dim=-1)
    # The weight scales the hidden state: then backward does not need the output.
    scale = dispatch(weights.reshape(-1, 1), order, place).to(x.dtype)
    hidden = F.silu(gate) * value * scale
    return combine(grouped_mm(hidden, down, ends), row, place, len(x))


def _of_arms(info: Any, dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
    """Stacked arms are one layer of all their experts: nothing else needs to know of them."""
    x, expert_index, weights, up, down = mapped(info, dims[:5], *inputs[:5])
    rows = x.flatten(0, 1), shifted(expert_index, up.shape[1]), weights.flatten(0, 1)
    matrices = up.flatten(0, 1), down.flatten(0, 1)
    mixed = mixture(*rows, *matrices, fused=inputs[5])
    return mixed.unflatten(0, x.shape[:2]), 0


# An operator for the sake of its vmap rule alone: to autograd it is the functions that it calls.
torch.library.define(
    "moebench::mixture",
    "(Tensor x, Tensor expert_index, Tensor weights, Tensor up, Tensor down, bool fused) -> Tensor",
)
torch.library.impl("moebench::mixture", "CompositeImplicitAutograd", _mixture)
torch.library.register_vmap("moebench::mixture", _of_arms)


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
        convert: Convert | None = None,
    ) -> Float[Tensor, "*rows d_model"]:
        """The sum of the experts' outputs, each times its weight; None: 1."""
        convert = convert or converting(x.dtype)
        gate, value = linear(x, convert(self.up)).chunk(2, dim=-1)
        hidden = F.silu(gate) * value
        if weights is not None:
            of_each = hidden.unflatten(-1, (weights.shape[-1], -1))
            hidden = (of_each * weights.to(x.dtype).unsqueeze(-1)).flatten(-2)
        return linear(hidden, convert(self.down))

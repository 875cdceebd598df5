"""The experts of a layer as one operator on a CPU: expert by expert, with a written-out backward.

    pre[row] = [gate, value] = x[token] @ up[expert]
    hidden[row] = silu(gate) * value * scale
    out[token] = the sum of hidden[row] @ down[expert] over the copies of the token

What one expert computes between two products stays in the processor's cache, and forward keeps
`pre` alone for backward. oneDNN, which computes most products, generates machine code for each new
shape, as slowly as it multiplies. So the rows of an expert are rounded up to a multiple, by rows of
the next experts, whose results are overwritten or set to 0.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from moebench.model.cpu_products import product, takes_onednn

FINENESS = 16  # an even share of rows is rounded up by a part of this at most
LEAST = 8  # rows that an expert's are rounded up to a multiple of


def cpu_experts(
    x: Float[Tensor, "rows d_model"],
    up: Float[Tensor, "experts d_model twice_expert_dim"],
    down: Float[Tensor, "experts expert_dim d_model"],
    scale: Float[Tensor, " copies"],
    order: Int[Tensor, " copies"],
    ends: Int[Tensor, " experts"],
) -> Float[Tensor, "rows d_model"]:
    """The weighted sum of each token's experts, in the dtype of `x`: fp32, bf16 or fp64.

    Args:
        up, down: weights, in the dtype of `x`.
        scale: the weight of each slot; slot r * top_k + c is copy c of row r.
        order: the slots, sorted by expert.
        ends: the end of each expert in that order, int32; the last is the number of copies.
    """
    return torch.ops.moebench.cpu_experts(x, up, down, scale, order, ends)[0]


def _forward(
    x: Tensor, up: Tensor, down: Tensor, scale: Tensor, order: Tensor, ends: Tensor
) -> tuple[Tensor, Tensor]:
    multiple, multiply = _multiple(up, order.shape[0]), partial(product, onednn=_onednn(up))
    row, weight = _sorted(x, scale, order, multiple)
    pre, out = x.new_empty(len(row), up.shape[2]), x.new_empty(len(row), x.shape[1])
    most = _most(ends, multiple)
    inputs, hidden = x.new_empty(most, x.shape[1]), x.new_empty(most, down.shape[1])
    for expert, span, _ in _spans(ends, multiple):
        size = span.stop - span.start
        torch.index_select(x, 0, row[span], out=inputs[:size])
        pre[span] = multiply(inputs[:size], up[expert])
        gate, value = pre[span].chunk(2, 1)
        of_expert = torch.ops.aten.silu.out(gate, out=hidden[:size])
        out[span] = multiply(of_expert.mul_(value).mul_(weight[span]), down[expert])
    return _summed(out, x, order), pre


def _backward(
    grad: Tensor,
    x: Tensor,
    up: Tensor,
    down: Tensor,
    scale: Tensor,
    order: Tensor,
    ends: Tensor,
    pre: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    multiple, multiply = _multiple(up, order.shape[0]), partial(product, onednn=_onednn(up))
    row, weight = _sorted(x, scale, order, multiple)
    of_up, of_down = torch.zeros_like(up), torch.zeros_like(down)
    of_copy = x.new_empty(len(row), x.shape[1])
    of_weight = scale.new_empty(len(row))
    most, dim = _most(ends, multiple), down.shape[1]
    inputs, of_out = x.new_empty(2, most, x.shape[1])
    of_pre = x.new_empty(most, 2 * dim)
    work = x.new_empty(3, most, dim)
    for expert, span, rows in _spans(ends, multiple):
        size = span.stop - span.start
        gate, value = pre[span].chunk(2, 1)
        of_gate, of_value = of_pre[:size].chunk(2, 1)
        active, hidden, of_scale = work[:, :size]
        torch.index_select(grad, 0, row[span], out=of_out[:size])
        torch.index_select(x, 0, row[span], out=inputs[:size])
        of_hidden = multiply(of_out[:size], down[expert].t())
        torch.ops.aten.silu.out(gate, out=active)
        torch.mul(active, value, out=hidden)
        torch.mul(of_hidden, hidden, out=of_scale)
        torch.sum(of_scale, 1, dtype=of_weight.dtype, out=of_weight[span])
        hidden.mul_(weight[span])
        of_hidden.mul_(weight[span])
        torch.mul(of_hidden, active, out=of_value)
        torch.ops.aten.silu_backward.grad_input(of_hidden.mul_(value), gate, grad_input=of_gate)
        if rows < size:  # rows of other experts, which may be those of another arm
            for part in (hidden, of_out, inputs, of_pre):
                part[rows:size].zero_()
        of_down[expert] = multiply(hidden.t(), of_out[:size])
        of_copy[span] = multiply(of_pre[:size], up[expert].t())
        of_up[expert] = multiply(inputs[:size].t(), of_pre[:size])
    of_scale = torch.empty_like(scale).index_copy_(0, order, of_weight[: len(order)])
    return _summed(of_copy, x, order), of_up, of_down, of_scale


def _onednn(up: Tensor) -> bool:
    return takes_onednn(up.dtype, up.shape[1] * up.shape[2])


def _multiple(up: Tensor, copies: int) -> int:
    """What the number of an expert's rows is rounded up to a multiple of: a power of two."""
    if not _onednn(up):
        return 1
    return max(LEAST, 1 << max(1, copies // len(up) // FINENESS).bit_length() - 1)


def _sorted(x: Tensor, scale: Tensor, order: Tensor, multiple: int) -> tuple[Tensor, Tensor]:
    """The row of each copy, sorted by expert, and its weight, [copies, 1], with spare ones."""
    copies = max(1, len(order) // max(1, len(x)))
    padded = F.pad(order, (0, multiple - 1))
    return padded // copies, scale.index_select(0, padded).unsqueeze(1).to(x.dtype)


def _spans(ends: Tensor, multiple: int) -> Iterator[tuple[int, slice, int]]:
    """Each expert that has rows, the rows that are computed for it, and how many are its own."""
    start = 0
    for expert, end in enumerate(ends.tolist()):
        rows = end - start
        if rows:
            yield expert, slice(start, start - -rows // multiple * multiple), rows
        start = end


def _most(ends: Tensor, multiple: int) -> int:
    return max((span.stop - span.start for _, span, _ in _spans(ends, multiple)), default=0)


def _summed(copies: Tensor, like: Tensor, order: Tensor) -> Tensor:
    """The sum of each token's copies, in the order of its slots."""
    numbers = torch.arange(len(order))
    place = torch.empty_like(order).index_copy_(0, order, numbers)
    if len(order) == len(like):
        return copies.index_select(0, place)
    return F.embedding_bag(place.view(len(like), -1), copies, mode="sum")


def _fake_forward(
    x: Tensor, up: Tensor, down: Tensor, scale: Tensor, order: Tensor, ends: Tensor
) -> tuple[Tensor, Tensor]:
    rows = len(order) + _multiple(up, order.shape[0]) - 1
    return torch.empty_like(x), x.new_empty(rows, up.shape[2])


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    up: Tensor,
    down: Tensor,
    scale: Tensor,
    order: Tensor,
    ends: Tensor,
    pre: Tensor,
) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(each) for each in (x, up, down, scale))


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.set_materialize_grads(False)  # `pre` has no gradient, which would be zeros


def _grads(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    found = torch.ops.moebench.cpu_experts_backward(grad, *ctx.saved_tensors)
    return *found, None, None


_INPUTS = "Tensor x, Tensor up, Tensor down, Tensor scale, Tensor order, Tensor ends"
torch.library.define("moebench::cpu_experts", f"({_INPUTS}) -> (Tensor, Tensor)")
torch.library.define(
    "moebench::cpu_experts_backward",
    f"(Tensor grad, {_INPUTS}, Tensor pre) -> (Tensor, Tensor, Tensor, Tensor)",
)
torch.library.impl("moebench::cpu_experts", "default", _forward)
torch.library.impl("moebench::cpu_experts_backward", "default", _backward)
torch.library.register_fake("moebench::cpu_experts", _fake_forward)
torch.library.register_fake("moebench::cpu_experts_backward", _fake_backward)
torch.library.register_autograd("moebench::cpu_experts", _grads, setup_context=_keep)

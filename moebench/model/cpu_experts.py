"""The experts of a layer as one operator on a CPU: group by group, with a written-out backward.

    pre[row] = [gate, value] = x[token] @ up[expert]
    hidden[row] = silu(gate) * value * scale
    out[token] = the sum of hidden[row] @ down[expert] over the copies of the token

Small experts are computed in groups, between whose products there is one pass for all. What a
group computes stays in the cache, and forward keeps `pre` alone for backward. oneDNN, which
computes most products, generates machine code for each new shape, as slowly as it multiplies. So
the rows of an expert are rounded up to a multiple, by rows of the next experts, whose results are
overwritten or set to 0.
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
GROUP = 2**16  # hidden numbers that are computed at once

# an expert, its rows within its group, rounded up, and how many of them are its own
Span = tuple[int, slice, int]
Group = tuple[slice, list[Span]]  # the rows of consecutive experts, and each of them


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
    groups = list(_groups(ends, multiple, down.shape[1]))
    spaces = _space(x, groups, x.shape[1]), _space(x, groups, down.shape[1])
    for whole, spans in groups:
        inputs, hidden = (space[: whole.stop - whole.start] for space in spaces)
        torch.index_select(x, 0, row[whole], out=inputs)
        for expert, own, _ in spans:
            multiply(inputs[own], up[expert], out=pre[whole][own])
        _activate(pre[whole], weight[whole], hidden)
        for expert, own, _ in spans:
            multiply(hidden[own], down[expert], out=out[whole][own])
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
    groups, dim = list(_groups(ends, multiple, down.shape[1])), down.shape[1]
    spaces = [_space(x, groups, width) for width in (x.shape[1], x.shape[1], 2 * dim, dim, dim)]
    for whole, spans in groups:
        parts = [space[: whole.stop - whole.start] for space in spaces]
        inputs, of_out, of_pre, hidden, of_hidden = parts
        torch.index_select(grad, 0, row[whole], out=of_out)
        torch.index_select(x, 0, row[whole], out=inputs)
        for expert, own, _ in spans:
            multiply(of_out[own], down[expert].t(), out=of_hidden[own])
        _deactivate(pre[whole], weight[whole], of_hidden, hidden, of_pre, of_weight[whole])
        for expert, own, _ in spans:
            multiply(of_pre[own], up[expert].t(), out=of_copy[whole][own])
        for expert, own, rows in reversed(spans):
            # spare rows are those of the next experts, which are done, and may be another arm's
            for part in (hidden, of_out, inputs, of_pre):
                part[own][rows:].zero_()
            multiply(hidden[own].t(), of_out[own], out=of_down[expert])
            multiply(inputs[own].t(), of_pre[own], out=of_up[expert])
    of_scale = torch.empty_like(scale).index_copy_(0, order, of_weight[: len(order)])
    return _summed(of_copy, x, order), of_up, of_down, of_scale


def _activate(pre: Tensor, weight: Tensor, hidden: Tensor) -> None:
    """silu(gate) * value * weight into `hidden`."""
    gate, value = pre.chunk(2, 1)
    torch.ops.aten.silu.out(gate, out=hidden).mul_(value).mul_(weight)


def _deactivate(
    pre: Tensor,
    weight: Tensor,
    of_hidden: Tensor,
    hidden: Tensor,
    of_pre: Tensor,
    of_weight: Tensor,
) -> None:
    """The backward of `_activate`: fills `hidden`, `of_pre` and `of_weight`, spends `of_hidden`."""
    (gate, value), (of_gate, of_value) = pre.chunk(2, 1), of_pre.chunk(2, 1)
    active = F.silu(gate)
    torch.mul(active, value, out=hidden)
    torch.sum(of_hidden * hidden, 1, dtype=of_weight.dtype, out=of_weight)
    hidden.mul_(weight)
    of_hidden.mul_(weight)
    torch.mul(of_hidden, active, out=of_value)
    torch.ops.aten.silu_backward.grad_input(of_hidden.mul_(value), gate, grad_input=of_gate)


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


def _groups(ends: Tensor, multiple: int, dim: int) -> Iterator[Group]:
    """Experts that have rows, in groups of at least GROUP hidden numbers."""
    begin, start, spans = 0, 0, list[Span]()
    for expert, end in enumerate(numbers := ends.tolist()):
        if rows := end - start:
            own = slice(start - begin, start - begin - -rows // multiple * multiple)
            spans.append((expert, own, rows))
        start = end
        if spans and ((end - begin) * dim >= GROUP or end == numbers[-1]):
            yield slice(begin, begin + spans[-1][1].stop), spans
            begin, spans = end, []


def _space(like: Tensor, groups: list[Group], width: int) -> Tensor:
    """Memory for the rows of any group."""
    return like.new_empty(max((whole.stop - whole.start for whole, _ in groups), default=0), width)


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

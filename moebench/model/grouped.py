"""Grouped matrix products, one matrix for each consecutive group of rows, and the sorting of rows.

torch's own `grouped_mm` supports neither vmap, nor fp64, nor fp32 in a compiled graph. So there are
two custom operators: the product, and the outer products that are its gradient. Their vmap rule
turns arms that are stacked by `torch.func.vmap` into more groups of one product.

    grouped_mm(rows, matrices, ends)[t] = rows[t] @ matrices[g]       for rows t of group g
    grouped_outer(left, right, ends)[g] = left[group g]^T @ right[group g]
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from moebench.errors import ConfigError
from moebench.model.arms import mapped, shifted

ROW_BYTES = 16  # every row of an operand must be a multiple of this


def grouped_mm(
    rows: Float[Tensor, "rows inner"],
    matrices: Float[Tensor, "groups inner outer"],
    ends: Int[Tensor, " groups"],
) -> Float[Tensor, "rows outer"]:
    """Multiply each group of rows by its own matrix; a group may be empty.

    Args:
        rows: sorted by group.
        matrices: one for each group.
        ends: the end of each group, ascending, int32, on the device of `rows`.

    Raises:
        ConfigError: on a GPU, if the rows of a width are not a multiple of ROW_BYTES.
    """
    return torch.ops.moebench.grouped_mm(rows, matrices, ends)


def dispatch(
    x: Float[Tensor, "rows width"], row: Int[Tensor, " copies"], place: Int[Tensor, " copies"]
) -> Float[Tensor, "copies width"]:
    """Copies of each row, in any order.

    Args:
        row: the row at each position; each row has as many copies as any other.
        place: the position of each copy; that of copy c of row r is at r * copies of a row + c.
    """
    return _Dispatch.apply(x, row, place)  # pyright: ignore


def combine(
    y: Float[Tensor, "copies width"],
    row: Int[Tensor, " copies"],
    place: Int[Tensor, " copies"],
    rows: int,
) -> Float[Tensor, "rows width"]:
    """The sum of each row's copies; the transpose of `dispatch`."""
    return _Combine.apply(y, row, place, rows)  # pyright: ignore


def _mm(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    if rows.dtype == torch.float64:  # torch has no such kernel; only tests use fp64
        parts = zip(_split(rows, ends), matrices, strict=True)
        return torch.cat([part @ matrix for part, matrix in parts])
    _check_widths(rows, *matrices.shape[1:])
    return F.grouped_mm(rows, matrices, offs=ends)


def _outer(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    if left.dtype == torch.float64:
        pairs = zip(_split(left, ends), _split(right, ends), strict=True)
        return torch.stack([a.T @ b for a, b in pairs])
    product = F.grouped_mm(left.T, right, offs=ends)
    # from sm_100 on, the kernel leaves the result of an empty group uninitialised
    if product.is_cuda and torch.cuda.get_device_capability(product.device)[0] >= 10:
        empty = ends.diff(prepend=ends.new_zeros(1)) == 0
        product = product.masked_fill(empty[:, None, None], 0)
    return product


def _split(rows: Tensor, ends: Tensor) -> tuple[Tensor, ...]:
    return rows.split(ends.diff(prepend=ends.new_zeros(1)).tolist())


def _check_widths(rows: Tensor, *widths: int) -> None:
    if not rows.is_cuda:
        return
    multiple = ROW_BYTES // rows.element_size()
    for width in widths:
        if width % multiple:
            raise ConfigError(
                f"a grouped product of width {width} in {rows.dtype}: model.d_model and "
                f"model.expert_dim must be multiples of {multiple} on a GPU"
            )


def _fake_mm(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0], matrices.shape[2])


def _fake_outer(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    return left.new_empty(ends.shape[0], left.shape[1], right.shape[1])


def _keep_mm(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _mm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    rows, matrices, ends = ctx.saved_tensors
    grad = grad.contiguous()  # torch's kernel rejects the stride 0 of an expanded tensor
    by_rows, by_matrices, _ = ctx.needs_input_grad
    return (
        grouped_mm(grad, matrices.mT, ends) if by_rows else None,
        torch.ops.moebench.grouped_outer(rows, grad, ends) if by_matrices else None,
        None,
    )


def _folded(info: Any, dims: tuple[int | None, ...], *tensors: Tensor) -> list[Tensor]:
    """Tensors whose arm axis is folded into their first axis; the last one is `ends`."""
    *others, ends = mapped(info, dims, *tensors)
    return [*(tensor.flatten(0, 1) for tensor in others), shifted(ends, others[0].shape[1])]


def _map_mm(
    info: Any, dims: tuple[int | None, ...], rows: Tensor, matrices: Tensor, ends: Tensor
) -> tuple[Tensor, int]:
    product = grouped_mm(*_folded(info, dims, rows, matrices, ends))
    return product.unflatten(0, (info.batch_size, -1)), 0


def _map_outer(
    info: Any, dims: tuple[int | None, ...], left: Tensor, right: Tensor, ends: Tensor
) -> tuple[Tensor, int]:
    product = torch.ops.moebench.grouped_outer(*_folded(info, dims, left, right, ends))
    return product.unflatten(0, (info.batch_size, -1)), 0


def _register(name: str, kernel: Callable, fake: Callable, vmap: Callable) -> None:
    """Declare an operator of three tensors.

    `torch.library.custom_op` would import torch's compiler at the first call, which takes seconds.
    """
    parameters = ", ".join(f"Tensor {name}" for name in inspect.signature(kernel).parameters)
    torch.library.define(name, f"({parameters}) -> Tensor")
    torch.library.impl(name, "default", kernel)
    torch.library.register_fake(name, fake)
    torch.library.register_vmap(name, vmap)


_register("moebench::grouped_mm", _mm, _fake_mm, _map_mm)
_register("moebench::grouped_outer", _outer, _fake_outer, _map_outer)
torch.library.register_autograd("moebench::grouped_mm", _mm_backward, setup_context=_keep_mm)


class _Dispatch(torch.autograd.Function):
    """A gather whose gradient is a sum of gathered rows, without atomic additions: deterministic
    on a GPU."""

    @staticmethod
    def forward(x: Tensor, row: Tensor, place: Tensor) -> Tensor:
        return x.index_select(0, row)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.rows = inputs[0].shape[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        row, place = ctx.saved_tensors
        return combine(grad, row, place, ctx.rows), None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(y: Tensor, row: Tensor, place: Tensor, rows: int) -> Tensor:
        gathered = y.index_select(0, place)
        if len(gathered) == rows:
            return gathered
        copies = gathered.unflatten(0, (rows, -1))
        if y.is_cuda:
            return copies.sum(1)
        total = copies[:, 0]
        for number in range(1, copies.shape[1]):  # a sum over the short axis is slower on a CPU
            total = total + copies[:, number]
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:3])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore
        row, place = ctx.saved_tensors
        return dispatch(grad, row, place), None, None, None


for _function in (_Dispatch, _Combine):  # torch asks at every call, which takes as long as the call
    _function.forward.__signature__ = inspect.signature(_function.forward)  # pyright: ignore

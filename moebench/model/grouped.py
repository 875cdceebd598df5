"""Rows sorted into groups, multiplied by a matrix a group in one call, and put back in order.

Each operation folds a mapped axis (the arms of a stack) into more rows and more groups, so that
stacked arms are computed by the same kernels as one, on the same numbers.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

MOST_GROUPS = 1023  # of a grouped product on a GPU


def grouped_mm(
    rows: Float[Tensor, "rows inner"],
    matrices: Float[Tensor, "groups inner outer"],
    ends: Int[Tensor, " groups"],
) -> Float[Tensor, "rows outer"]:
    """Multiply each group of rows by its own matrix; a group may be empty.

    Args:
        rows: sorted by group.
        matrices: one a group; rows of both operands must be a multiple of 16 bytes long.
        ends: where each group ends, ascending, int32, on the device of `rows`.
    """
    return _product(rows, matrices, ends)


def dispatch(
    x: Float[Tensor, "rows width"], order: Int[Tensor, " copies"], place: Int[Tensor, " copies"]
) -> Float[Tensor, "copies width"]:
    """top_k copies of each row, sorted: copy c of row r is number r * top_k + c of `order`.

    Args:
        order: which copy comes at each place.
        place: where each copy comes; the inverse of `order`.
    """
    return _Dispatch.apply(x, order, place)  # pyright: ignore


def combine(
    y: Float[Tensor, "copies width"],
    order: Int[Tensor, " copies"],
    place: Int[Tensor, " copies"],
    rows: int,
) -> Float[Tensor, "rows width"]:
    """The sum of each row's copies: what `dispatch` does, transposed."""
    return _Combine.apply(y, order, place, rows)  # pyright: ignore


# A custom operator, because torch's own cannot be traced in fp32, has no vmap rule, and its
# backward refuses gradients that were expanded.
@torch.library.custom_op("moebench::grouped_mm", mutates_args=())
def _product(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    if rows.dtype != torch.float64:
        return F.grouped_mm(rows, matrices, offs=ends)
    # torch's kernel knows no fp64, which only tests use
    parts = zip(rows.split(_sizes(ends)), matrices, strict=True)
    return torch.cat([part @ matrix for part, matrix in parts])


@torch.library.custom_op("moebench::grouped_outer", mutates_args=())
def _outer(rows: Tensor, other: Tensor, ends: Tensor) -> Tensor:
    """[groups, inner, outer] the products rows^T @ other of each group: gradients of matrices."""
    if rows.dtype == torch.float64:
        sizes = _sizes(ends)
        parts = zip(rows.split(sizes), other.split(sizes), strict=True)
        return torch.stack([part.T @ each for part, each in parts])
    found = F.grouped_mm(rows.T, other, offs=ends)
    if found.is_cuda:  # whose kernel may leave what it finds where a group is empty
        empty = ends.diff(prepend=ends.new_zeros(1)) == 0
        found = found.masked_fill(empty[:, None, None], 0)
    return found


def _sizes(ends: Tensor) -> list[int]:
    return ends.diff(prepend=ends.new_zeros(1)).tolist()


@_product.register_fake
def _(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0], matrices.shape[2])


@_outer.register_fake
def _(rows: Tensor, other: Tensor, ends: Tensor) -> Tensor:
    return rows.new_empty(ends.shape[0], rows.shape[1], other.shape[1])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    rows, matrices, ends = ctx.saved_tensors
    grad = grad.contiguous()
    return (
        _product(grad, matrices.transpose(1, 2), ends) if ctx.needs_input_grad[0] else None,
        _outer(rows, grad, ends) if ctx.needs_input_grad[1] else None,
        None,
    )


_product.register_autograd(_gradients, setup_context=_keep)


@_product.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], rows: Tensor, matrices: Tensor, ends: Tensor):
    rows, matrices, ends = _mapped(info.batch_size, in_dims, rows, matrices, ends)
    found = _product(rows.flatten(0, 1), matrices.flatten(0, 1), _folded(ends, rows.shape[1]))
    return found.unflatten(0, rows.shape[:2]), 0


@_outer.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], rows: Tensor, other: Tensor, ends: Tensor):
    rows, other, ends = _mapped(info.batch_size, in_dims, rows, other, ends)
    found = _outer(rows.flatten(0, 1), other.flatten(0, 1), _folded(ends, rows.shape[1]))
    return found.unflatten(0, ends.shape), 0


class _Dispatch(torch.autograd.Function):
    """A gather whose gradient is a sum of gathered rows: no atomic additions, so that it is the
    same every time on a GPU."""

    @staticmethod
    def forward(x: Tensor, order: Tensor, place: Tensor) -> Tensor:
        return x.index_select(0, order // (order.shape[0] // x.shape[0]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        x, order, place = inputs
        ctx.rows = x.shape[0]
        ctx.save_for_backward(order, place)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        order, place = ctx.saved_tensors
        return combine(grad, order, place, ctx.rows), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor):  # pyright: ignore
        x, order, place = _mapped(info.batch_size, in_dims, *inputs)
        copies = order.shape[1]
        found = dispatch(x.flatten(0, 1), _folded(order, copies), _folded(place, copies))
        return found.unflatten(0, order.shape), 0


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(y: Tensor, order: Tensor, place: Tensor, rows: int) -> Tensor:
        copies = y.index_select(0, place).unflatten(0, (rows, -1))
        total = copies[:, 0]
        for number in range(1, copies.shape[1]):  # much faster than a sum over the short axis
            total = total + copies[:, number]
        return total if copies.shape[1] > 1 else total.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:3])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore
        order, place = ctx.saved_tensors
        return dispatch(grad, order, place), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any):  # pyright: ignore
        y, order, place = _mapped(info.batch_size, in_dims[:3], *inputs[:3])
        arms, copies, rows = *order.shape, inputs[3]
        order, place = _folded(order, copies), _folded(place, copies)
        found = combine(y.flatten(0, 1), order, place, arms * rows)
        return found.unflatten(0, (arms, rows)), 0


def _mapped(size: int, in_dims: tuple[int | None, ...], *inputs: Tensor) -> list[Tensor]:
    """The inputs with the mapped axis in front, those that lack it expanded."""
    return [
        each.expand(size, *each.shape) if dim is None else each.movedim(dim, 0)
        for dim, each in zip(in_dims, inputs, strict=True)
    ]


def _folded(places: Tensor, rows: int) -> Tensor:
    """[arms, n] places of each arm as [arms * n] among the rows of all arms, `rows` each."""
    first = torch.arange(places.shape[0], device=places.device, dtype=places.dtype) * rows
    return (places + first[:, None]).flatten()

"""Many matrix products over consecutive groups of rows, in one call, and how rows come to groups.

Two operators of torch, since its own `grouped_mm` knows no vmap, no fp64, and no fp32 in a compiled
graph: rows times a matrix a group, and the outer products that are that one's gradient. Arms that
are stacked by `torch.func.vmap` become more groups of one product: that is the vmap rule.

    grouped_mm(rows, matrices, ends)[t] = rows[t] @ matrices[g]       for rows t of group g
    grouped_outer(left, right, ends)[g] = left[group g]^T @ right[group g]
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from moebench.errors import ConfigError

ROW_BYTES = 16  # what a row of every operand must be a multiple of


def grouped_mm(
    rows: Float[Tensor, "rows inner"],
    matrices: Float[Tensor, "groups inner outer"],
    ends: Int[Tensor, " groups"],
) -> Float[Tensor, "rows outer"]:
    """Multiply each group of rows by its own matrix; a group may be empty.

    Args:
        rows: sorted by group.
        matrices: one a group.
        ends: where each group ends, ascending, int32, on the device of `rows`.

    Raises:
        ConfigError: on a GPU, for widths whose rows are not a multiple of ROW_BYTES long.
    """
    return torch.ops.moebench.grouped_mm(rows, matrices, ends)


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


@torch.library.custom_op("moebench::grouped_mm", mutates_args=())
def _mm(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    if rows.dtype == torch.float64:  # torch's kernel knows none, which only tests use
        return torch.cat(
            [part @ each for part, each in zip(_split(rows, ends), matrices, strict=True)]
        )
    _check_widths(rows, *matrices.shape[1:])
    return F.grouped_mm(rows, matrices, offs=ends)


@torch.library.custom_op("moebench::grouped_outer", mutates_args=())
def _outer(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    if left.dtype == torch.float64:
        pairs = zip(_split(left, ends), _split(right, ends), strict=True)
        return torch.stack([one.T @ other for one, other in pairs])
    found = F.grouped_mm(left.T, right, offs=ends)
    if found.is_cuda:  # whose kernel may leave what it finds where a group is empty
        empty = ends.diff(prepend=ends.new_zeros(1)) == 0
        found = found.masked_fill(empty[:, None, None], 0)
    return found


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


@_mm.register_fake
def _(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0], matrices.shape[2])


@_outer.register_fake
def _(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    return left.new_empty(ends.shape[0], left.shape[1], right.shape[1])


def _keep_mm(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _mm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    rows, matrices, ends = ctx.saved_tensors
    grad = grad.contiguous()  # torch's kernel refuses the stride 0 of an expanded one
    by_rows, by_matrices, _ = ctx.needs_input_grad
    return (
        grouped_mm(grad, matrices.mT, ends) if by_rows else None,
        torch.ops.moebench.grouped_outer(rows, grad, ends) if by_matrices else None,
        None,
    )


_mm.register_autograd(_mm_backward, setup_context=_keep_mm)


def _mapped(info: Any, dims: tuple[int | None, ...], *tensors: Tensor) -> list[Tensor]:
    """Tensors with the arms in front; what arms share is expanded."""
    return [
        each.expand(info.batch_size, *each.shape) if dim is None else each.movedim(dim, 0)
        for each, dim in zip(tensors, dims, strict=True)
    ]


def _shifted(places: Tensor, rows: int) -> Tensor:
    """[arms, n] places among the `rows` of each arm as [arms * n] among the rows of all arms."""
    offset = torch.arange(places.shape[0], dtype=places.dtype, device=places.device) * rows
    return (places + offset[:, None]).flatten()


def _folded(info: Any, dims: tuple[int | None, ...], *tensors: Tensor) -> list[Tensor]:
    """Tensors with the arms in front of, and folded into, their first axis; `ends` is the last."""
    *others, ends = _mapped(info, dims, *tensors)
    return [*(each.flatten(0, 1) for each in others), _shifted(ends, others[0].shape[1])]


@_mm.register_vmap
def _(
    info: Any, dims: tuple[int | None, ...], rows: Tensor, matrices: Tensor, ends: Tensor
) -> tuple[Tensor, int]:
    found = grouped_mm(*_folded(info, dims, rows, matrices, ends))
    return found.unflatten(0, (info.batch_size, -1)), 0


@_outer.register_vmap
def _(
    info: Any, dims: tuple[int | None, ...], left: Tensor, right: Tensor, ends: Tensor
) -> tuple[Tensor, int]:
    found = torch.ops.moebench.grouped_outer(*_folded(info, dims, left, right, ends))
    return found.unflatten(0, (info.batch_size, -1)), 0


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
        x, order, place = _mapped(info, in_dims, *inputs)
        copies = order.shape[1]
        found = dispatch(x.flatten(0, 1), _shifted(order, copies), _shifted(place, copies))
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
        y, order, place = _mapped(info, in_dims[:3], *inputs[:3])
        arms, copies, rows = *order.shape, inputs[3]
        order, place = _shifted(order, copies), _shifted(place, copies)
        found = combine(y.flatten(0, 1), order, place, arms * rows)
        return found.unflatten(0, (arms, rows)), 0

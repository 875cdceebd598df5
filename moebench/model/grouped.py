"""Many matrix products over consecutive groups of rows, in one call.

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
CUDA_GROUPS = 1023  # most that one product on a GPU takes


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
    return F.grouped_mm(left.T, right, offs=ends)


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


def _folded(info: Any, dims: tuple[int | None, ...], *tensors: Tensor) -> list[Tensor]:
    """Tensors with the arms in front of, and folded into, their first axis; `ends` is the last."""
    arms = info.batch_size
    front = [
        each.expand(arms, *each.shape) if dim is None else each.movedim(dim, 0)
        for each, dim in zip(tensors, dims, strict=True)
    ]
    *others, ends = front
    rows = others[0].shape[1]
    offset = torch.arange(arms, dtype=ends.dtype, device=ends.device) * rows
    return [*(each.flatten(0, 1) for each in others), (ends + offset[:, None]).flatten()]


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

"""The experts of a layer as one operator, computed by the Triton kernels of `triton_kernels.py`.

    pre[row] = [gate, value] = x[token] @ up[expert]
    hidden[row] = silu(gate) * value * scale
    out[token] = the sum of hidden[row] @ down[expert] over the copies of the token

Forward keeps `pre` alone for backward. The operators are declared without Triton, which the first
call of one imports.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

SIDE = 64  # most columns of a tile, and both sides of a tile of a weight gradient
INNER = 32  # most terms of a sum that are loaded at once
NARROWEST = 16  # the least side of a tile of a product
SUMMED = 1024  # elements of a sum over copies in one program
SPAN = 128  # entries of a tile map that are written at once


class Blocks(NamedTuple):
    """Sizes of tiles, by the dtype of the operands; not tuned on a GPU yet.

    Attributes:
        rows: of a tile of a product.
        depth: rows of an expert that a weight gradient loads at once.
        warps: of a program of a product.
    """

    rows: int
    depth: int
    warps: int


BLOCKS = {torch.float32: Blocks(64, 32, 4), torch.bfloat16: Blocks(128, 64, 8)}


def fused_experts(
    x: Float[Tensor, "rows d_model"],
    up: Float[Tensor, "experts d_model twice_expert_dim"],
    down: Float[Tensor, "experts expert_dim d_model"],
    scale: Float[Tensor, " copies"],
    order: Int[Tensor, " copies"],
    ends: Int[Tensor, " experts"],
) -> Float[Tensor, "rows d_model"]:
    """The weighted sum of each token's experts, in the dtype of `x`: fp32 or bf16.

    Sums are in fp32, and torch's own switch decides whether a GPU may round the factors of a
    product in fp32 to TF32 (`torch.set_float32_matmul_precision`).

    Args:
        up, down: weights, in the dtype of `x`.
        scale: the weight of each slot; slot r * top_k + c is copy c of row r.
        order: the slots, sorted by expert.
        ends: the end of each expert in that order, int32; the last is the number of copies.
    """
    keep = torch.is_grad_enabled()
    return torch.ops.moebench.experts(x, up, down, scale, order, ends, keep)[0]


def launch(kernel: str, programs: int, warps: int, *arguments: Any, **constants: Any) -> None:
    """Start a kernel of `triton_kernels.py`. All launches go through here."""
    from moebench.model import triton_kernels

    getattr(triton_kernels, kernel)[(programs,)](*arguments, **constants, num_warps=warps)


def _experts(
    x: Tensor, up: Tensor, down: Tensor, scale: Tensor, order: Tensor, ends: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    copies, dim = order.shape[0], down.shape[1]
    tiles = tile_map(ends, copies, x.dtype)
    pre, hidden = x.new_empty(copies if keep else 0, 2 * dim), x.new_empty(copies, dim)
    launch(
        *("gate_up", *_programs(tiles, dim, x.dtype)),
        *(x.contiguous(), up.contiguous(), scale.contiguous(), order, ends),
        *(tiles, pre, hidden, tiles.shape[1]),
        TOP_K=_top_k(order, x),
        KEEP=keep,
        **_shape(x.dtype, x.shape[1], dim),
    )
    return _product(hidden, down, x, order, ends, tiles), pre, tiles


def _product(
    rows: Tensor, matrices: Tensor, like: Tensor, order: Tensor, ends: Tensor, tiles: Tensor
) -> Tensor:
    copies, (width, dim), top_k = order.shape[0], matrices.shape[1:], _top_k(order, like)
    out = rows.new_empty(copies, dim)
    launch(
        *("scattered", *_programs(tiles, dim, rows.dtype)),
        *(rows.contiguous(), matrices, order, ends, tiles, out, tiles.shape[1]),
        *matrices.stride(),
        **_shape(rows.dtype, width, dim),
    )
    return _summed(out.view(copies // top_k, top_k, dim), out.dtype)


def _hidden_grad(
    grad: Tensor,
    down: Tensor,
    pre: Tensor,
    scale: Tensor,
    order: Tensor,
    ends: Tensor,
    tiles: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    copies, dim = order.shape[0], down.shape[1]
    shape = _shape(grad.dtype, grad.shape[1], dim)
    pre_grad, hidden = torch.empty_like(pre), grad.new_empty(copies, dim)
    parts = grad.new_empty(1, _ceil(dim, shape["COLUMNS"]), copies, dtype=torch.float32)
    launch(
        *("hidden_grad", _programs(tiles, dim, grad.dtype)[0], 8),
        *(grad.contiguous(), down.contiguous(), pre, scale.contiguous(), order, ends),
        *(tiles, pre_grad, hidden, parts, tiles.shape[1], copies),
        TOP_K=_top_k(order, grad),
        **shape,
    )
    return pre_grad, hidden, _summed(parts, scale.dtype)[0]


def _outer(left: Tensor, right: Tensor, order: Tensor, ends: Tensor, gather_left: bool) -> Tensor:
    groups, blocks = ends.shape[0], BLOCKS[left.dtype]
    sides = _side(left.shape[1]), _side(right.shape[1])
    out = left.new_empty(groups, left.shape[1], right.shape[1])
    tiles = _ceil(left.shape[1], sides[0]) * _ceil(right.shape[1], sides[1])
    launch(
        *("outer", groups * tiles, 4),
        *(left.contiguous(), right.contiguous(), order, ends, out),
        LEFT=left.shape[1],
        RIGHT=right.shape[1],
        LEFT_COPIES=_top_k(order, left) if gather_left else 0,
        RIGHT_COPIES=0 if gather_left else _top_k(order, right),
        DEPTH=blocks.depth,
        SIDE_LEFT=sides[0],
        SIDE_RIGHT=sides[1],
        PRECISION=_precision(),
    )
    return out


def tile_map(ends: Tensor, copies: int, dtype: torch.dtype) -> Tensor:
    """[2, tiles] int32: the expert and the first row of each tile; expert -1 for a spare tile.

    There are as many as any routing needs: the sum over experts of ceil(rows / rows of a tile).
    """
    (groups,), rows = ends.shape, BLOCKS[dtype].rows
    tiles = _empty_tile_map(ends, copies, dtype)
    bound = tiles.shape[1]
    launch("map_tiles", groups, 4, ends, tiles, bound, groups, ROWS=rows, SPAN=SPAN)
    return tiles


def _empty_tile_map(ends: Tensor, copies: int | torch.SymInt, dtype: torch.dtype) -> Tensor:
    (groups,), rows = ends.shape, BLOCKS[dtype].rows
    return ends.new_empty(2, (copies + min(groups, copies) * (rows - 1)) // rows)


def _summed(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum over the second of three axes, in its order."""
    rows, number, width = parts.shape
    if number == 1 and parts.dtype == dtype:
        return parts[:, 0]
    out = parts.new_empty(rows, width, dtype=dtype)
    programs = _ceil(out.numel(), SUMMED)
    sizes = {"COPIES": number, "WIDTH": width, "BLOCK": SUMMED}
    launch("summed", programs, 4, parts, out, out.numel(), **sizes)
    return out


def _programs(tiles: Tensor, columns: int, dtype: torch.dtype) -> tuple[int, int]:
    """Programs of a product, and warps of each."""
    return tiles.shape[1] * _ceil(columns, _side(columns)), BLOCKS[dtype].warps


def _shape(dtype: torch.dtype, width: int, columns: int) -> dict[str, Any]:
    """Constants of a product with `width` terms a sum."""
    return {
        "WIDTH": width,
        "DIM": columns,
        "ROWS": BLOCKS[dtype].rows,
        "COLUMNS": _side(columns),
        "INNER": _side(width, INNER),
        "PRECISION": _precision(),
    }


def _side(width: int, most: int = SIDE) -> int:
    """The side of a tile of a matrix of some width: a power of two."""
    return max(NARROWEST, min(most, 1 << (width - 1).bit_length()))


def _ceil(number: int, size: int) -> int:
    return -(-number // size)


def _top_k(order: Tensor, tokens: Tensor) -> int:
    return max(1, order.shape[0] // max(1, tokens.shape[0]))


def _precision() -> str:
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def _fake_experts(
    x: Tensor, up: Tensor, down: Tensor, scale: Tensor, order: Tensor, ends: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    pre = x.new_empty(order.shape[0] if keep else 0, up.shape[2])
    return x.new_empty(x.shape), pre, _empty_tile_map(ends, order.shape[0], x.dtype)


def _fake_product(
    rows: Tensor, matrices: Tensor, like: Tensor, order: Tensor, ends: Tensor, tiles: Tensor
) -> Tensor:
    return rows.new_empty(like.shape[0], matrices.shape[2])


def _fake_hidden_grad(
    grad: Tensor,
    down: Tensor,
    pre: Tensor,
    scale: Tensor,
    order: Tensor,
    ends: Tensor,
    tiles: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    hidden = pre.new_empty(pre.shape[0], down.shape[1])
    return pre.new_empty(pre.shape), hidden, scale.new_empty(scale.shape)


def _fake_outer(
    left: Tensor, right: Tensor, order: Tensor, ends: Tensor, gather_left: bool
) -> Tensor:
    return left.new_empty(ends.shape[0], left.shape[1], right.shape[1])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:6], *output[1:])
    ctx.set_materialize_grads(False)  # `pre` has no gradient; one of zeros would be large


def _backward(
    ctx: Any, grad: Tensor, _of_pre: Tensor | None, _of_tiles: Tensor | None
) -> tuple[Tensor | None, ...]:
    x, up, down, scale, order, ends, pre, tiles = ctx.saved_tensors
    by_x, by_up, by_down, by_scale, *_ = ctx.needs_input_grad
    operators = torch.ops.moebench
    pre_grad, hidden, scale_grad = operators.experts_hidden_grad(
        grad, down, pre, scale, order, ends, tiles
    )
    return (
        operators.experts_product(pre_grad, up.mT, x, order, ends, tiles) if by_x else None,
        operators.experts_outer(x, pre_grad, order, ends, True) if by_up else None,
        operators.experts_outer(hidden, grad, order, ends, False) if by_down else None,
        scale_grad if by_scale else None,
        *(None, None, None),
    )


def _register(name: str, schema: str, kernel: Any, fake: Any) -> None:
    """Declare an operator of tensors, the last two `order` and `ends`, and then of options."""
    torch.library.define(f"moebench::{name}", schema)
    torch.library.impl(f"moebench::{name}", "default", kernel)
    torch.library.register_fake(f"moebench::{name}", fake)


_register(
    "experts",
    "(Tensor x, Tensor up, Tensor down, Tensor scale, Tensor order, Tensor ends, bool keep)"
    " -> (Tensor, Tensor, Tensor)",
    _experts,
    _fake_experts,
)
_register(
    "experts_product",
    "(Tensor rows, Tensor matrices, Tensor like, Tensor order, Tensor ends, Tensor tiles)"
    " -> Tensor",
    _product,
    _fake_product,
)
_register(
    "experts_hidden_grad",
    "(Tensor grad, Tensor down, Tensor pre, Tensor scale, Tensor order, Tensor ends, Tensor tiles)"
    " -> (Tensor, Tensor, Tensor)",
    _hidden_grad,
    _fake_hidden_grad,
)
_register(
    "experts_outer",
    "(Tensor left, Tensor right, Tensor order, Tensor ends, bool gather_left) -> Tensor",
    _outer,
    _fake_outer,
)
torch.library.register_autograd("moebench::experts", _backward, setup_context=_keep)

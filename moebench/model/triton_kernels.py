"""Triton kernels of the experts: gather, gate-and-up product, SwiGLU, scale, down product.

Rows are copies of tokens, sorted by expert. `order[row]` is the slot of a row: slot t * top_k + c
is copy c of token t. A kernel gathers a row from its token and scatters it to its slot; a sorted
copy of the tokens is never written. A product runs over tiles of rows that never cross an expert.
Which tile belongs to which expert is computed on the device, and the grid covers the most tiles
that any routing needs: the host waits for nothing.

Every sum has a fixed order, without atomic additions: the sum over the copies of a token is a
kernel of its own, and one program computes a tile of an expert's weight gradient, row after row.

Gather and scatter inside grouped products follow ScatterMoE (arXiv 2403.08245); what is kept for
backward, and the one kernel for the gradients of SwiGLU and scale, follow SonicMoE
(arXiv 2512.14080); the padding of tiles instead of rows goes back to MegaBlocks (arXiv 2211.15841).

Import this module only where Triton is used: Triton is no dependency.
"""

from typing import no_type_check

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from triton import knobs  # pyright: ignore[reportMissingImports]

# Triton's interpreter multiplies the bits of bf16 numbers instead of the numbers.
WIDEN = tl.constexpr(knobs.runtime.interpret)


# no_type_check: the shape checks of the tests would wrap functions that Triton compiles.
@triton.jit
@no_type_check
def map_tiles(ends, tiles, bound, groups, ROWS: tl.constexpr, SPAN: tl.constexpr):
    """The expert and the first row of each tile; -1 for the expert of a tile without rows.

    Program g writes the tiles of expert g, the last program also those without rows.
    """
    group = tl.program_id(0)
    lane = tl.arange(0, SPAN)
    first = 0
    for start in range(0, group, SPAN):
        earlier = start + lane
        stop = tl.load(ends + earlier, mask=earlier < group, other=0)
        begin = tl.load(ends + earlier - 1, mask=(earlier < group) & (earlier > 0), other=0)
        first += tl.sum((stop - begin + ROWS - 1) // ROWS, 0)
    begin = tl.load(ends + group - 1, mask=group > 0, other=0)
    own = (tl.load(ends + group) - begin + ROWS - 1) // ROWS
    for start in range(0, own, SPAN):
        number = start + lane
        tl.store(tiles + first + number, lane * 0 + group, mask=number < own)
        tl.store(tiles + bound + first + number, begin + number * ROWS, mask=number < own)
    if group == groups - 1:
        for start in range(first + own, bound, SPAN):
            tl.store(tiles + start + lane, lane * 0 - 1, mask=start + lane < bound)


@triton.jit
@no_type_check
def _dot(one, other, total, PRECISION: tl.constexpr):
    if WIDEN:
        one, other = one.to(tl.float32), other.to(tl.float32)
    return tl.dot(one, other, total, input_precision=PRECISION)


@triton.jit
@no_type_check
def gate_up(
    x, up, scale, order, ends, tiles, pre, hidden, bound,
    TOP_K: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr, KEEP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """hidden = silu(gate) * value * scale with [gate, value] = pre = x[token] @ up[expert]."""
    across: tl.constexpr = (DIM + COLUMNS - 1) // COLUMNS
    tile, column = tl.program_id(0) // across, tl.program_id(0) % across
    group = tl.load(tiles + tile)
    if group < 0:
        return
    row = tl.load(tiles + bound + tile) + tl.arange(0, ROWS)
    live = row < tl.load(ends + group)
    slot = tl.load(order + row, mask=live, other=0)
    columns = column * COLUMNS + tl.arange(0, COLUMNS)
    within = columns < DIM
    source = x + (slot // TOP_K)[:, None] * WIDTH
    matrix = up + group.to(tl.int64) * (WIDTH * 2 * DIM) + columns[None, :]
    gate = tl.zeros((ROWS, COLUMNS), tl.float32)
    value = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, WIDTH, INNER):
        inner = start + tl.arange(0, INNER)
        there = inner < WIDTH
        part = tl.load(source + inner[None, :], mask=live[:, None] & there[None, :], other=0.0)
        both = there[:, None] & within[None, :]
        of_gate = tl.load(matrix + inner[:, None] * (2 * DIM), mask=both, other=0.0)
        of_value = tl.load(matrix + inner[:, None] * (2 * DIM) + DIM, mask=both, other=0.0)
        gate = _dot(part, of_gate, gate, PRECISION)
        value = _dot(part, of_value, value, PRECISION)
    both = live[:, None] & within[None, :]
    place = row.to(tl.int64)[:, None]
    if KEEP:
        kept = pre + place * (2 * DIM) + columns[None, :]
        tl.store(kept, gate.to(pre.dtype.element_ty), mask=both)
        tl.store(kept + DIM, value.to(pre.dtype.element_ty), mask=both)
    weight = tl.load(scale + slot, mask=live, other=0.0).to(tl.float32)
    result = gate * tl.sigmoid(gate) * value * weight[:, None]
    to = hidden + place * DIM + columns[None, :]
    tl.store(to, result.to(hidden.dtype.element_ty), mask=both)


@triton.jit
@no_type_check
def _product(
    source, matrix, live, within, by_inner, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of rows times a tile of columns, in fp32.

    Args:
        source: where each row begins, [ROWS, 1].
        matrix: where each column begins, [1, COLUMNS]; its elements are `by_inner` apart.
    """
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, WIDTH, INNER):
        inner = start + tl.arange(0, INNER)
        there = inner < WIDTH
        part = tl.load(source + inner[None, :], mask=live[:, None] & there[None, :], other=0.0)
        factor = tl.load(
            matrix + inner[:, None] * by_inner, mask=there[:, None] & within[None, :], other=0.0
        )
        total = _dot(part, factor, total, PRECISION)
    return total


@triton.jit
@no_type_check
def scattered(
    rows, matrices, order, ends, tiles, out, bound, by_group, by_inner, by_column,
    WIDTH: tl.constexpr, DIM: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out[slot] = row @ matrices[expert]; WIDTH terms a sum, DIM columns."""
    across: tl.constexpr = (DIM + COLUMNS - 1) // COLUMNS
    tile, column = tl.program_id(0) // across, tl.program_id(0) % across
    group = tl.load(tiles + tile)
    if group < 0:
        return
    row = tl.load(tiles + bound + tile) + tl.arange(0, ROWS)
    live = row < tl.load(ends + group)
    columns = column * COLUMNS + tl.arange(0, COLUMNS)
    within = columns < DIM
    source = rows + row.to(tl.int64)[:, None] * WIDTH
    matrix = matrices + group.to(tl.int64) * by_group + columns[None, :] * by_column
    total = _product(source, matrix, live, within, by_inner, WIDTH, ROWS, COLUMNS, INNER, PRECISION)
    slot = tl.load(order + row, mask=live, other=0)
    to = out + slot[:, None] * DIM + columns[None, :]
    tl.store(to, total.to(out.dtype.element_ty), mask=live[:, None] & within[None, :])


@triton.jit
@no_type_check
def summed(parts, out, size, COPIES: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """out[r, w] = the sum of parts[r, c, w] over the copies c, one after the other."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = place < size
    source = parts + place // WIDTH * (COPIES * WIDTH) + place % WIDTH
    total = tl.load(source, mask=live, other=0.0).to(tl.float32)
    for copy in range(1, COPIES):
        total += tl.load(source + copy * WIDTH, mask=live, other=0.0).to(tl.float32)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=live)


@triton.jit
@no_type_check
def hidden_grad(
    grad, down, pre, scale, order, ends, tiles, pre_grad, hidden, scale_parts, bound, copies,
    TOP_K: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of `pre` and of the scale, and `hidden` once more, for the gradient of `down`.

    With h = grad[token] @ down[expert]^T, s = sigmoid(gate) and w = scale:
        d value = h w gate s,   d gate = h w value s (1 + gate (1 - s)),   d w = <h, gate s value>
    The last is a sum over columns; each tile of columns writes its own part.
    """
    across: tl.constexpr = (DIM + COLUMNS - 1) // COLUMNS
    tile, column = tl.program_id(0) // across, tl.program_id(0) % across
    group = tl.load(tiles + tile)
    if group < 0:
        return
    row = tl.load(tiles + bound + tile) + tl.arange(0, ROWS)
    live = row < tl.load(ends + group)
    slot = tl.load(order + row, mask=live, other=0)
    columns = column * COLUMNS + tl.arange(0, COLUMNS)
    within = columns < DIM
    source = grad + (slot // TOP_K)[:, None] * WIDTH
    matrix = down + group.to(tl.int64) * (DIM * WIDTH) + columns[None, :] * WIDTH
    h = _product(source, matrix, live, within, 1, WIDTH, ROWS, COLUMNS, INNER, PRECISION)
    both = live[:, None] & within[None, :]
    place = row.to(tl.int64)[:, None]
    offset = place * (2 * DIM) + columns[None, :]
    gate = tl.load(pre + offset, mask=both, other=0.0).to(tl.float32)
    value = tl.load(pre + offset + DIM, mask=both, other=0.0).to(tl.float32)
    weight = tl.load(scale + slot, mask=live, other=0.0).to(tl.float32)
    s = tl.sigmoid(gate)
    active = gate * s * value
    part = scale_parts + column.to(tl.int64) * copies + slot
    tl.store(part, tl.sum(h * active, 1), mask=live)
    again = active * weight[:, None]
    tl.store(hidden + place * DIM + columns[None, :], again.to(hidden.dtype.element_ty), mask=both)
    h = h * weight[:, None]
    by_gate = h * value * s * (1 + gate * (1 - s))
    tl.store(pre_grad + offset, by_gate.to(pre_grad.dtype.element_ty), mask=both)
    tl.store(pre_grad + offset + DIM, (h * gate * s).to(pre_grad.dtype.element_ty), mask=both)


@triton.jit
@no_type_check
def outer(
    left, right, order, ends, out,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, LEFT_COPIES: tl.constexpr, RIGHT_COPIES: tl.constexpr,
    DEPTH: tl.constexpr, SIDE_LEFT: tl.constexpr, SIDE_RIGHT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """out[expert] = the sum over its rows of left[row]^T right[row]; 0 for an expert without rows.

    LEFT_COPIES or RIGHT_COPIES is top_k where that operand is gathered from tokens, else 0.
    """
    across: tl.constexpr = (RIGHT + SIDE_RIGHT - 1) // SIDE_RIGHT
    tiles: tl.constexpr = (LEFT + SIDE_LEFT - 1) // SIDE_LEFT * across
    group, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    lefts = tile // across * SIDE_LEFT + tl.arange(0, SIDE_LEFT)
    rights = tile % across * SIDE_RIGHT + tl.arange(0, SIDE_RIGHT)
    begin = tl.load(ends + group - 1, mask=group > 0, other=0)
    end = tl.load(ends + group)
    total = tl.zeros((SIDE_LEFT, SIDE_RIGHT), tl.float32)
    for start in range(begin, end, DEPTH):
        row = start + tl.arange(0, DEPTH)
        live = row < end
        slot = tl.load(order + row, mask=live, other=0)
        left_row = slot // LEFT_COPIES if LEFT_COPIES else row.to(tl.int64)
        right_row = slot // RIGHT_COPIES if RIGHT_COPIES else row.to(tl.int64)
        one = tl.load(
            left + left_row[None, :] * LEFT + lefts[:, None],
            mask=live[None, :] & (lefts < LEFT)[:, None],
            other=0.0,
        )
        other = tl.load(
            right + right_row[:, None] * RIGHT + rights[None, :],
            mask=live[:, None] & (rights < RIGHT)[None, :],
            other=0.0,
        )
        total = _dot(one, other, total, PRECISION)
    to = out + group.to(tl.int64) * (LEFT * RIGHT) + lefts[:, None] * RIGHT + rights[None, :]
    inside = (lefts < LEFT)[:, None] & (rights < RIGHT)[None, :]
    tl.store(to, total.to(out.dtype.element_ty), mask=inside)

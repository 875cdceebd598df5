"""Whether the bits of a matrix product depend on the product's shape, found by trying.

A library may round an element of a product differently when the product has other rows, is one of
several at once, or is transposed. A change of such shapes alone then changes results by rounding;
otherwise it changes no bit. Which holds depends on the processor, the library and the widths. On an
AMD EPYC, for instance, MKL rounds the last rows differently unless 4 divides their number.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from moebench.model.cpu_products import linear
from moebench.model.grouped import grouped_mm
from moebench.model.transformer import Attention, MoETransformer, causal_attention

KINDS = {
    "rows": "rows of a linear layer, whose number changes with splits and ranks",
    "groups": "rows of an expert, whose number changes with the routing of other tokens",
    "stacks": "products of a run, which a stack computes together with those of other runs",
}
SOME_ROWS = (1, 2, 3, 5, 6, 7)  # less than a kernel's block of rows, or not a multiple of one
MOST_TOKENS = 512  # in a trial; a pass may have more
MOST_EXPERTS = 4  # in a trial

Product = Callable[..., Tensor]
Matrix = tuple[tuple[int, ...], torch.dtype]


class Shapes(NamedTuple):
    """The shapes of the products of a model.

    Attributes:
        matrices: shapes, [outputs, inputs] or [experts, inputs, outputs], and dtypes.
        heads: number and width of attention heads.
        compute: dtype of attention.
        sequences: in a forward pass.
        length: tokens in a sequence.
    """

    matrices: frozenset[Matrix]
    heads: frozenset[tuple[int, int]]
    compute: torch.dtype
    sequences: int
    length: int


def shapes_of(model: MoETransformer, sequences: int, length: int) -> Shapes:
    """The shapes of a model's products; its weights may be on the meta device."""
    wide = torch.promote_types(model.compute, torch.float32)  # routers, in a bf16 model, too
    matrices = {
        (
            (*(min(size, MOST_EXPERTS) for size in matrix.shape[:-2]), *matrix.shape[-2:]),
            wide if ".router." in name else model.compute,
        )
        for name, matrix in model.named_parameters()
        if matrix.ndim > 1 and name not in ("embedding", "domains")
    }
    attention = (module for module in model.modules() if isinstance(module, Attention))
    heads = {(module.num_heads, module.gain.shape[0]) for module in attention}
    sequences = max(1, min(sequences, MOST_TOKENS // length))
    return Shapes(frozenset(matrices), frozenset(heads), model.compute, sequences, length)


def shape_dependent(
    shapes: Shapes, device: torch.device | str = "cpu", *, fused: bool = False
) -> list[str]:
    """The KINDS of products whose bits depend on the shape of the product, by trial.

    Args:
        fused: whether the experts are the Triton kernels, whose bits do not: a row of a result
            depends on its own inputs alone, and an expert's gradient on its own rows.
    """
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype) -> Tensor:
        # drawn in their own dtype: products of rounded numbers could be exact
        return torch.randn(*shape, generator=draw, dtype=dtype).to(device)

    dependent: set[str] = set()
    for shape, dtype in sorted(shapes.matrices, key=str):  # each draws what it always does
        expert = len(shape) == 3
        product, kind = (_experts, "groups") if expert else (linear, "rows")
        inputs = shape[1]
        weights = normal(2, *shape, dtype=dtype)
        rows = normal(2, shapes.sequences * shapes.length, inputs, dtype=dtype)
        if expert and fused:
            continue
        if not _same_rows(product, rows[0], weights[0, :1] if expert else weights[0]):
            dependent.add(kind)
        if not _same_stacked(product, rows, weights):
            dependent.add("stacks")
    for heads, width in sorted(shapes.heads):
        shape = (2, shapes.sequences, heads, shapes.length, width)
        parts = (normal(*shape, dtype=shapes.compute) for _ in range(3))
        if not _same_stacked(causal_attention, *parts):
            dependent.add("stacks")
    return [kind for kind in KINDS if kind in dependent]


def _experts(rows: Tensor, matrices: Tensor) -> Tensor:
    """As many rows for each matrix, but for a remainder."""
    number = len(matrices)
    ends = torch.arange(1, number + 1, device=rows.device) * len(rows) // number
    if rows.device.type == "cpu":
        parts = rows.tensor_split(ends[:-1].tolist())
        return torch.cat(
            [linear(part, matrix.T) for part, matrix in zip(parts, matrices, strict=True)]
        )
    return grouped_mm(rows, matrices, ends.to(torch.int32))


def _same_rows(product: Product, rows: Tensor, weights: Tensor) -> bool:
    whole = product(rows, weights)
    numbers = {number for number in (*SOME_ROWS, len(rows) - 1) if 0 < number < len(rows)}
    return all(torch.equal(product(rows[:n], weights), whole[:n]) for n in numbers)


def _same_stacked(product: Product, *operands: Tensor) -> bool:
    """Whether two products at once and their gradients are those of each alone."""

    def results(function: Product, *inputs: Tensor) -> list[Tensor]:
        inputs = tuple(tensor.detach().requires_grad_() for tensor in inputs)
        output = function(*inputs)
        return [output, *torch.autograd.grad((output * output.detach()).sum(), inputs)]

    stacked = results(vmap(product), *operands)
    return all(
        torch.equal(one[number], other)
        for number in range(2)
        for one, other in zip(
            stacked, results(product, *(operand[number] for operand in operands)), strict=True
        )
    )

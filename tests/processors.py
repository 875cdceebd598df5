"""Comparisons of what differs in the shapes of its products alone, on any processor.

Such results are equal but for rounding; they are equal to the bit where no bits of a product depend
on its shape. A test of such an equality takes the fixture `same` and runs three times:

- with the products of this processor, within a tight bound;
- with those of a pretended processor, on which the bits of most products depend on their shape,
  within the same bound;
- to the bit, in a process of its own whose products do not depend on their shape (`pytest --bits`,
  run by `tests/test_bits.py`); skipped with the reason if they do.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from moebench.model import cpu_attention, cpu_experts
from moebench.model.transformer import MoETransformer
from moebench.train.products import shape_dependent, shapes_of

# MKL then takes one path for products of all shapes, at least for small widths; it is slow
SHAPE_INDEPENDENT = {"MKL_CBWR": "COMPATIBLE", "MKL_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

# operators of ours that multiply by torch's
INSIDE = {
    torch.ops.moebench.cpu_experts.default: cpu_experts._forward,
    torch.ops.moebench.cpu_experts_backward.default: cpu_experts._backward,
    torch.ops.moebench.cpu_attention.default: cpu_attention._forward,
    torch.ops.moebench.cpu_attention_backward.default: cpu_attention._backward,
}
BLOCK = 4
# of the norm of a tensor; in fp32, some units in the last place
BOUNDS = {torch.float64: 1e-12, torch.float32: 8 * torch.finfo(torch.float32).eps}


class PretendedProcessor(TorchDispatchMode):
    """Rows after the last whole BLOCK of a product, and several products at once, round otherwise.

    They are computed in fp64 and rounded; those in fp64 as the sum of two halves.
    """

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in INSIDE:
            with self:
                return INSIDE[func](*args, **(kwargs or {}))
        if func is torch.ops.aten.baddbmm_.default:
            return args[0].add_(_otherwise(*args[1:]))
        found = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.bmm.default, torch.ops.aten.bmm.out):
            return found.copy_(_otherwise(*args))
        if func in (torch.ops.aten.mm.default, torch.ops.aten.mm.out):
            _round_last_rows(found, *args)
        elif func is torch.ops.moebench.grouped_mm.default:
            rows, matrices, ends = args
            begin = 0
            for matrix, end in zip(matrices, ends.tolist(), strict=True):
                _round_last_rows(found[begin:end], rows[begin:end], matrix)
                begin = end
        return found


def _round_last_rows(product: Tensor, left: Tensor, right: Tensor) -> None:
    begin = len(left) - len(left) % BLOCK
    product[begin:] = _otherwise(left[begin:], right)


def _otherwise(left: Tensor, right: Tensor) -> Tensor:
    if left.dtype != torch.float64:
        return (left.double() @ right.double()).to(left.dtype)
    return left[..., ::2] @ right[..., ::2, :] + left[..., 1::2] @ right[..., 1::2, :]


class Same:
    """Asserts that tensors are equal: to the bit, or but for rounding.

    Attributes:
        exact: which of the two.
        precision: of runs whose results after some steps are compared. A step amplifies rounding,
            so that in fp32 no tight bound would hold.
    """

    def __init__(self, exact: bool) -> None:
        self.exact = exact
        self.precision = "fp32" if exact else "fp64"

    def given(self, kind: str, model: MoETransformer, sequences: int, length: int) -> None:
        """Skip a comparison to the bit where products of this kind depend on their shape."""
        if self.exact and kind in shape_dependent(shapes_of(model, sequences, length)):
            settings = " ".join(f"{name}={value}" for name, value in SHAPE_INDEPENDENT.items())
            pytest.skip(f"bits depend on the shape of products ({kind}), with {settings}, too")

    def __call__(self, found: Tensor, expected: Tensor, name: str = "") -> None:
        if self.exact or not found.dtype.is_floating_point:
            assert torch.equal(found, expected), name
            return
        assert found.dtype == expected.dtype
        found, expected = found.detach(), expected.detach()
        bound = BOUNDS[found.dtype] * expected.norm()
        error = (found - expected).norm()
        assert error <= bound, f"{name}: off by {error / expected.norm():.2g} of its norm"

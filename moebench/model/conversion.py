"""Weights in the dtype of products, which a GPU converts by one launch for all of them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from moebench.model.arms import mapped

Convert = Callable[[Tensor], Tensor]  # from a weight to its copy


def converting(dtype: torch.dtype, weights: Sequence[Tensor] = ()) -> Convert:
    """A function that converts weights to a dtype.

    Args:
        weights: all that it will be asked for, if they are to be converted together.
    """
    together = weights and weights[0].is_cuda and weights[0].dtype != dtype
    if not together or torch.compiler.is_compiling():  # the compiler joins conversions by itself
        return lambda weight: weight.to(dtype)
    copies = _Conversion.apply(dtype, *weights)
    of_each = dict(zip(map(id, weights), copies, strict=True))  # pyright: ignore
    return lambda weight: of_each[id(weight)]


class _Conversion(torch.autograd.Function):
    @staticmethod
    def forward(dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        return _copied(weights, dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.dtype = inputs[1].dtype
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        copies = iter(_copied([grad for grad in grads if grad is not None], ctx.dtype))
        return None, *(None if grad is None else next(copies) for grad in grads)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], dtype: torch.dtype, *weights: Tensor):  # pyright: ignore
        copies = _Conversion.apply(dtype, *mapped(info, in_dims[1:], *weights))
        return copies, (0,) * len(weights)


def _copied(tensors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    if copies:
        torch._foreach_copy_(copies, list(tensors))  # pyright: ignore
    return tuple(copies)

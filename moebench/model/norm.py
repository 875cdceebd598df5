"""Normalisation of rows, with a written-out backward; on a GPU by torch's fused kernels."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from moebench.model.arms import mapped

EPS = 1e-6


def rms_norm(x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
    """Scale rows to a root mean square of 1, without a gain: the next matrix can include one.

    Source: Zhang and Sennrich, arXiv 1910.07467, Eq. 4, with EPS added to the mean square.
    """
    if not x.is_cuda and torch.compiler.is_compiling():
        return x * _inverse(x)
    return _Norm.apply(x)[0]  # pyright: ignore


def _inverse(x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows 1"]:
    """The inverse of each row's root mean square."""
    # on a CPU, vector_norm is faster than the mean of squares
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / x.shape[-1]
    return torch.rsqrt(square + EPS)


class _Norm(torch.autograd.Function):
    """Rows are independent, so the arm axis of a stack is more rows.

    Returns the rows and the inverse of their root mean square, [*rows, 1].
    """

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        if x.is_cuda:
            return torch.ops.aten._fused_rms_norm(x, [x.shape[-1]], None, EPS)
        inverse = _inverse(x)
        return x * inverse, inverse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(inputs[0], output[1])
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # `inverse` has no gradient, which would be zeros

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: None) -> Tensor:  # pyright: ignore
        return _NormBackward.apply(grad, *ctx.saved_tensors)  # pyright: ignore

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], x: Tensor) -> Any:  # pyright: ignore
        return _Norm.apply(*mapped(info, in_dims, x)), (0, 0)


class _NormBackward(torch.autograd.Function):
    @staticmethod
    def forward(grad: Tensor, x: Tensor, inverse: Tensor) -> Tensor:
        if x.is_cuda:
            kernel = torch.ops.aten._fused_rms_norm_backward
            return kernel(grad.contiguous(), x, [x.shape[-1]], inverse, None, [True, False])[0]
        part = (grad * x).sum(-1, keepdim=True) * inverse.square() / -x.shape[-1]
        return torch.addcmul(grad, x, part).mul_(inverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None: ...

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> Any:  # pyright: ignore
        return _NormBackward.apply(*mapped(info, in_dims, *tensors)), 0

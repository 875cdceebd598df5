"""Normalisation of rows; on a GPU by torch's fused kernels, one launch each way."""

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
    if x.is_cuda:
        return _FusedNorm.apply(x)[0]  # pyright: ignore
    # vector_norm is a third faster on a CPU than F.rms_norm, forward and backward
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / x.shape[-1]
    return x * torch.rsqrt(square + EPS)


class _FusedNorm(torch.autograd.Function):
    """torch's kernels, which have no vmap rule: rows are independent, so an arm axis is more rows.

    Returns the rows and the inverse of their root mean square, [*rows, 1].
    """

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ops.aten._fused_rms_norm(x, [x.shape[-1]], None, EPS)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(inputs[0], output[1])
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # `inverse` has no gradient, which would be zeros

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> Tensor:  # pyright: ignore
        return _FusedNormBackward.apply(grad, *ctx.saved_tensors)  # pyright: ignore

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], x: Tensor) -> Any:  # pyright: ignore
        return _FusedNorm.apply(*mapped(info, in_dims, x)), (0, 0)


class _FusedNormBackward(torch.autograd.Function):
    @staticmethod
    def forward(grad: Tensor, x: Tensor, inverse: Tensor) -> Tensor:
        kernel = torch.ops.aten._fused_rms_norm_backward
        return kernel(grad.contiguous(), x, [x.shape[-1]], inverse, None, [True, False])[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None: ...

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> Any:  # pyright: ignore
        return _FusedNormBackward.apply(*mapped(info, in_dims, *tensors)), 0

"""Queries and keys of attention: normalised, gained, and rotated by their position."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from moebench.model.arms import mapped
from moebench.model.norm import EPS, rms_norm

ROPE_BASE = 10_000.0
Rotary = tuple[Float[Tensor, "tokens half"], Float[Tensor, "tokens half"]]  # cos and sin
Heads = Float[Tensor, "sequences heads tokens width"]


def rotary_tables(
    length: int, width: int, dtype: torch.dtype, device: torch.device | None = None
) -> Rotary:
    """cos and sin of the rotary angles, each [length, width / 2] (RoFormer, Eq. 15)."""
    half = torch.arange(0, width, 2, device=device, dtype=torch.float32)
    position = torch.arange(length, device=device, dtype=torch.float32)
    angle = torch.outer(position, ROPE_BASE ** (-half / width))
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(
    x: Float[Tensor, "*batch tokens width"], cos: Tensor, sin: Tensor
) -> Float[Tensor, "*batch tokens width"]:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def heads(
    qkv: Float[Tensor, "sequences tokens 3 heads width"],
    gain: Float[Tensor, " width"],
    rotary: Rotary,
) -> tuple[Heads, Heads, Heads]:
    """Queries, keys and values; only the product of query and key matters, so one gain serves both.

    On a GPU, queries and keys are computed together, by few launches.
    """
    if qkv.is_cuda and not torch.compiler.is_compiling():
        q, k, v, _ = _Heads.apply(qkv, gain, *rotary)  # pyright: ignore
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return rotate(rms_norm(q) * gain, *rotary), rotate(rms_norm(k), *rotary), v


class _Heads(torch.autograd.Function):
    """Queries, keys and values, [sequences, tokens, heads, width], and the inverse of the root mean
    square of each, which backward needs; an arm axis comes first.

    Values are normalised, too, and nobody reads that: to leave them out would take a copy.
    """

    @staticmethod
    def forward(qkv: Tensor, gain: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        normed, inverse = torch.ops.aten._fused_rms_norm(qkv, [qkv.shape[-1]], None, EPS)
        normed.select(-3, 0).mul_(_over_rows(gain))
        both = normed.narrow(-3, 0, 2)
        q, k = _turned(both, torch.empty_like(both), cos, sin).unbind(-3)
        return q, k, qkv.select(-3, 2), inverse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs, output[3])
        ctx.mark_non_differentiable(output[3])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, of_q: Tensor, of_k: Tensor, of_v: Tensor, _: None) -> Any:  # pyright: ignore
        qkv, gain, cos, sin, inverse = ctx.saved_tensors
        of_turned = torch.stack([of_q, of_k, of_v], -3)
        grad = torch.empty_like(of_turned)
        _turned(of_turned.narrow(-3, 0, 2), grad.narrow(-3, 0, 2), cos, sin, back=True)
        of_gained, normed = grad.select(-3, 0), qkv.select(-3, 0) * inverse.select(-3, 0)
        of_gain = (of_gained * normed).sum((-4, -3, -2)).to(gain.dtype)
        of_gained.mul_(_over_rows(gain))
        kernel = torch.ops.aten._fused_rms_norm_backward
        of_qkv = kernel(grad, qkv, [qkv.shape[-1]], inverse, None, [True, False])[0]
        of_qkv.select(-3, 2).copy_(of_v)
        return of_qkv, of_gain, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> Any:  # pyright: ignore
        qkv, gain = mapped(info, in_dims[:2], *inputs[:2])
        return _Heads.apply(qkv, gain, *inputs[2:]), (0, 0, 0, 0)


def _over_rows(gain: Tensor) -> Tensor:
    """A gain [*arms, width] beside [*arms, sequences, tokens, heads, width]."""
    return gain[..., None, None, None, :]


def _turned(
    x: Float[Tensor, "*arms sequences tokens parts heads width"],
    out: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    back: bool = False,
) -> Tensor:
    """`rotate` into `out`, of the shape of `x`; or rotate back."""
    sign = -1 if back else 1
    halves, into = x.unflatten(-1, (2, -1)), out.unflatten(-1, (2, -1))
    torch.mul(halves, cos[:, None, None, None], out=into)
    into.select(-2, 0).addcmul_(halves.select(-2, 1), sin[:, None, None], value=-sign)
    into.select(-2, 1).addcmul_(halves.select(-2, 0), sin[:, None, None], value=sign)
    return out

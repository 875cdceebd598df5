"""Operators that a GPU computes otherwise than a CPU: ties, grouped products and attention."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tests.pretended_gpu.tensor import OnGpu, on_gpu

if TYPE_CHECKING:
    from tests.pretended_gpu.gpu import Gpu

MOST_GROUPS = 1023
ALIGNMENT = 16  # bytes


def topk(gpu: "Gpu", func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The last of equal values wins: CUDA promises no order, so none may be relied on."""
    values, k = args[0].host, args[1]
    if not gpu.ties:
        return on_gpu(func(values, *args[1:], **kwargs))
    dim = kwargs.get("dim", args[2] if len(args) > 2 else -1)
    ordered, index = values.flip(dim).sort(dim=dim, descending=True, stable=True)
    index = values.shape[dim] - 1 - index
    return tuple(OnGpu(each.narrow(dim, 0, k).contiguous()) for each in (ordered, index))


def grouped_mm(gpu: "Gpu", func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """torch's `_grouped_mm`: bf16 on sm_90 and sm_100 alone has a kernel.

    All else reads the ends of the groups and multiplies group by group, which waits.
    """
    left, right = args[:2]
    ends = kwargs.get("offs", args[2] if len(args) > 2 else None)
    if not isinstance(ends, OnGpu) or ends.dtype != torch.int32:
        raise RuntimeError("Offsets have to be int32 on the device of the operands")
    for operand in (left, right):
        _check_strides(operand)
    groups, both_flat = len(ends), left.ndim == right.ndim == 2
    has_kernel = left.dtype == right.dtype == torch.bfloat16 and gpu.capability[0] in (9, 10)
    if has_kernel:
        if groups > MOST_GROUPS:
            raise RuntimeError(f"Can't process more than {MOST_GROUPS + 1} groups")
        if both_flat and not (left.stride(-1) != 1 and right.stride(-1) == 1):
            raise RuntimeError("CUTLASS cannot handle an empty group in this layout")
        gpu.launch("prepare _grouped_mm")
    else:
        gpu.wait(f"{left.dtype} has no grouped kernel on sm_{gpu.capability[0]}{gpu.capability[1]}")
        gpu.launch("mm", groups)
        gpu.launch("_grouped_mm", -1)
    product = func(left.host, right.host, ends.host)
    if has_kernel and both_flat and gpu.capability[0] == 10:
        sizes = ends.host.diff(prepend=ends.host.new_zeros(1))
        product[sizes == 0] = math.nan  # that kernel does not write the results of empty groups
    return OnGpu(product)


def _check_strides(operand: OnGpu) -> None:
    """An operand is row- or column-major, and its rows or columns are aligned."""
    if operand.host.data_ptr() % ALIGNMENT:
        raise RuntimeError(f"expected data_ptr to be aligned to {ALIGNMENT} bytes")
    (rows, columns), (by_row, by_column) = operand.shape[-2:], operand.stride()[-2:]
    if by_row == 1 and by_column >= max(1, rows):
        stride = by_column
    elif by_column == 1 and by_row >= max(1, columns):
        stride = by_row
    else:
        raise RuntimeError(f"Invalid strides {operand.stride()} for sizes {operand.shape}")
    if stride * operand.element_size() % ALIGNMENT:
        raise RuntimeError(f"strides should be multiple of {ALIGNMENT} bytes")


def attention(gpu: "Gpu", func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The forward of the memory-efficient kernel: outputs and log-sum-exps, without scores."""
    q, k, v = (each.host for each in args[:3])
    bias = None if args[3] is None else args[3].host
    causal = kwargs.get("is_causal", args[6] if len(args) > 6 else False)
    if bias is not None and bias.shape != (*q.shape[:-1], k.shape[-2]):
        raise RuntimeError(f"attn_bias: wrong shape {tuple(bias.shape)}")
    scores = _scores(q, k, bias, causal)
    out = (scores.softmax(-1) @ v.to(scores.dtype)).to(q.dtype)
    out = out.transpose(1, 2).contiguous().transpose(1, 2)  # the layout that the kernel returns
    seed = torch.zeros((), dtype=torch.int64)
    return tuple(OnGpu(each) for each in (out, scores.logsumexp(-1), seed, seed.clone()))


def attention_backward(gpu: "Gpu", func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    grad, q, k, v = (each.host for each in args[:4])
    bias = None if args[4] is None else args[4].host
    causal = kwargs.get("is_causal", args[11] if len(args) > 11 else False)
    probs = _scores(q, k, bias, causal).softmax(-1)
    of_out = grad.to(probs.dtype)
    of_probs = of_out @ v.to(probs.dtype).mT
    of_scores = probs * (of_probs - (of_probs * probs).sum(-1, keepdim=True))
    scale = q.shape[-1] ** -0.5
    of_q = of_scores @ k.to(probs.dtype) * scale
    of_k = of_scores.mT @ q.to(probs.dtype) * scale
    return *(OnGpu(each.to(q.dtype)) for each in (of_q, of_k, probs.mT @ of_out)), None


def fused_rms_norm(gpu: "Gpu", func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The rows, and the inverse of their root mean square in at least fp32."""
    x, _, _, eps = args
    _count_copies(gpu, x)
    wide = x.host.to(torch.promote_types(x.dtype, torch.float32))
    inverse = (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
    return OnGpu((wide * inverse).to(x.dtype)), OnGpu(inverse)


def _count_copies(gpu: "Gpu", *tensors: Tensor) -> None:
    """The kernels of norms copy what is not contiguous."""
    for tensor in tensors:
        if not tensor.is_contiguous():
            gpu.launch("contiguous")


def fused_rms_norm_backward(
    gpu: "Gpu", func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    _count_copies(gpu, *args[:2])
    grad, x, inverse = args[0].host, args[1].host, args[3].host
    normed = x.to(inverse.dtype) * inverse
    along = (grad * normed).mean(-1, keepdim=True)
    return OnGpu(((grad - normed * along) * inverse).to(x.dtype)), None


def _scores(q: Tensor, k: Tensor, bias: Tensor | None, causal: bool) -> Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(wide) @ k.to(wide).mT * q.shape[-1] ** -0.5
    if causal:
        scores = scores + torch.full(scores.shape[-2:], -math.inf, dtype=wide).triu(1)
    return scores if bias is None else scores + bias.to(wide)


KERNELS: dict[str, Callable[["Gpu", Any, tuple[Any, ...], dict[str, Any]], Any]] = {
    "topk": topk,
    "_fused_rms_norm": fused_rms_norm,
    "_fused_rms_norm_backward": fused_rms_norm_backward,
    "_grouped_mm": grouped_mm,
    "_scaled_dot_product_efficient_attention": attention,
    "_scaled_dot_product_efficient_attention_backward": attention_backward,
}

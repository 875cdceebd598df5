"""Matrix products on a CPU, those in fp32 by oneDNN where MKL leaves half of the processor unused.

torch multiplies matrices in fp32 by MKL, which keeps to AVX2 on an AMD processor, even on one with
AVX-512. There, oneDNN is 2.2 times as fast (Zen 5). In bf16, torch takes oneDNN by itself. oneDNN
generates machine code for each new shape, so small matrices stay with MKL.
"""

import os
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from moebench.machine import CPUS, lines
from moebench.model.arms import mapped

LEAST = 4096  # entries of a weight matrix from which on oneDNN is the faster


def suits() -> bool:
    """Whether oneDNN is to multiply in fp32 here: on an AMD processor with AVX-512.

    Who sets MKL_CBWR asks MKL for bits that machines share, and keeps MKL.
    """
    return (
        any(line.startswith("vendor_id") and "AMD" in line for line in lines(CPUS))
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and "MKL_CBWR" not in os.environ
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # torch's compiler takes it
    )


ONEDNN = suits()


def takes_onednn(dtype: torch.dtype, entries: int) -> bool:
    """Whether oneDNN computes the products of a weight matrix of so many entries on this CPU."""
    return dtype == torch.bfloat16 or (dtype == torch.float32 and ONEDNN and entries >= LEAST)


def product(
    rows: Float[Tensor, "rows inner"],
    matrix: Float[Tensor, "inner outer"],
    *,
    onednn: bool,
    out: Float[Tensor, "rows outer"] | None = None,
) -> Float[Tensor, "rows outer"]:
    """`rows @ matrix`, without a gradient. Both may be transposed.

    Args:
        onednn: `takes_onednn` of the weight matrix, also where that is the result.
        out: where the result is written; None: into new memory.
    """
    if onednn and rows.dtype == torch.float32 and rows.numel():  # oneDNN takes no empty matrix
        found = torch.ops.mkldnn._linear_pointwise(rows, matrix.t(), None, "none", [], "")
        return found if out is None else out.copy_(found)
    return torch.mm(rows, matrix) if out is None else torch.mm(rows, matrix, out=out)


def linear(
    x: Float[Tensor, "*rows inner"],
    weight: Float[Tensor, "outer inner"],
    bias: Float[Tensor, " outer"] | None = None,
) -> Float[Tensor, "*rows outer"]:
    """`F.linear`, in fp32 on a CPU by oneDNN. Arms of a stack are computed one by one there."""
    by_torch = x.device.type != "cpu" or x.dtype != torch.float32
    if by_torch or not takes_onednn(x.dtype, weight.numel()):
        return F.linear(x, weight, bias)
    out = torch.ops.moebench.cpu_linear(x.flatten(0, -2), weight).unflatten(0, x.shape[:-1])
    return out if bias is None else out + bias


def _forward(x: Tensor, weight: Tensor) -> Tensor:
    return product(x, weight.t(), onednn=True)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors
    of_x, of_weight = ctx.needs_input_grad
    return (
        torch.ops.moebench.cpu_linear(grad, weight.t()) if of_x else None,
        torch.ops.moebench.cpu_linear(grad.t(), x.t()) if of_weight else None,
    )


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _of_arms(
    info: Any, dims: tuple[int | None, ...], x: Tensor, weight: Tensor
) -> tuple[Tensor, int]:
    pairs = zip(*(part.unbind() for part in mapped(info, dims, x, weight)), strict=True)
    return torch.stack([torch.ops.moebench.cpu_linear(*pair) for pair in pairs]), 0


torch.library.define("moebench::cpu_linear", "(Tensor x, Tensor weight) -> Tensor")
torch.library.impl("moebench::cpu_linear", "default", _forward)
torch.library.register_fake(
    "moebench::cpu_linear", lambda x, weight: x.new_empty(len(x), len(weight))
)
torch.library.register_autograd("moebench::cpu_linear", _backward, setup_context=_keep)
torch.library.register_vmap("moebench::cpu_linear", _of_arms)

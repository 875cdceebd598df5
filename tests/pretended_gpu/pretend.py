"""Lets code find the pretended device behind `torch.cuda`."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from moebench.model import fused
from tests.pretended_gpu.gpu import Gpu
from tests.pretended_gpu.tensor import CUDA, OnGpu, on_host

FREE, TOTAL = 60 << 30, 80 << 30  # bytes of memory that it claims
# A CPU build of torch has no kernel for them on a GPU, and would take them apart.
LIBRARY = torch.library.Library("aten", "IMPL")
for name in ("_fused_rms_norm", "_fused_rms_norm_backward", "silu_backward"):
    LIBRARY.impl(name, lambda *_: None, "CUDA")
real_attention, real_launch = F.scaled_dot_product_attention, fused.launch
real_all_reduce, real_init = dist.all_reduce, dist.init_process_group


class Factories(TorchDispatchMode):
    """Hands operators to the device that have no tensor to be asked, such as `torch.zeros`."""

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self.gpu = gpu

    @classmethod
    def _should_skip_dynamo(
        cls,
    ) -> bool:  # nothing is compiled here; to say so imports the compiler
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return self.gpu.run(func, args, kwargs or {})


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **more: Any,
) -> Tensor:
    """torch chooses a kernel in C++, where it would not find this device's."""
    if query.device != CUDA:
        return real_attention(query, key, value, attn_mask, dropout_p, is_causal, **more)
    bias = None
    if attn_mask is not None:
        bias = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -math.inf)
        bias = bias.expand(*query.shape[:-1], key.shape[-2])
    needs_grad = torch.is_grad_enabled() or query.requires_grad
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    return kernel(query, key, value, bias, needs_grad, 0.0, is_causal)[0]


def launch(kernel: str, programs: int, warps: int, *arguments: Any, **constants: Any) -> None:
    """Triton's interpreter computes on the host."""
    tensors = [each for each in arguments if isinstance(each, Tensor)]
    if any(isinstance(each, OnGpu) for each in tensors):
        assert all(isinstance(each, OnGpu) for each in tensors), "an operand is on the host"
        OnGpu.gpu.launch(kernel)
    real_launch(kernel, programs, warps, *on_host(arguments), **constants)


def all_reduce(tensor: Tensor, *words: Any, **more: Any) -> Any:
    """Ranks of the device talk by gloo, as those of a CPU do."""
    if isinstance(tensor, OnGpu):
        OnGpu.gpu.launch("all_reduce")
    return real_all_reduce(on_host(tensor), *words, **more)


def init_process_group(_: str, **more: Any) -> None:
    real_init("gloo", **more)


@contextmanager
def pretended(capability: tuple[int, int] = (9, 0), *, ties: bool = True) -> Iterator[Gpu]:
    """Code of the block finds a GPU of a compute capability."""
    gpu = Gpu(capability, ties=ties)

    class Event:
        def __init__(self, **_: Any) -> None: ...
        def record(self, *_: Any) -> None: ...
        def synchronize(self) -> None:
            gpu.underway.arrive()

        def elapsed_time(self, _: "Event") -> float:
            return 0.0

    def set_sync_debug_mode(mode: str | int) -> None:
        if not gpu.waits_are_errors and mode != "default":  # so does torch, once a process
            warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=2)
        gpu.waits_are_errors = mode in ("error", 2)

    def reset_peak_memory_stats(*_: Any) -> None:
        gpu.memory.peak = gpu.memory.live

    cuda = {
        "is_available": lambda: True,
        "is_bf16_supported": lambda *_: True,
        "_lazy_init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda _: None,
        "get_device_name": lambda *_: "Pretended GPU",
        "get_device_capability": lambda *_: gpu.capability,
        "mem_get_info": lambda *_: (FREE, TOTAL),
        "memory_allocated": lambda *_: gpu.memory.live,
        "max_memory_allocated": lambda *_: gpu.memory.peak,
        "reset_peak_memory_stats": reset_peak_memory_stats,
        "synchronize": lambda *_: gpu.underway.arrive(),
        "set_sync_debug_mode": set_sync_debug_mode,
        "Event": Event,
    }
    OnGpu.gpu = gpu
    in_place = torch.__future__.get_overwrite_module_params_on_conversion()
    lifts_on_cpu = torch._C._only_lift_cpu_tensors()
    try:
        # a tensor of the host cannot become one of the device in place
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(.., device="cuda") asks the mode
        with (
            patch.multiple(torch.cuda, **cuda),
            patch.object(F, "scaled_dot_product_attention", attention),
            patch.object(fused, "launch", launch),
            patch.object(dist, "all_reduce", all_reduce),
            patch.object(dist, "init_process_group", init_process_group),
            patch.object(Tensor, "pin_memory", lambda tensor, *_: gpu.pin(tensor)),
            Factories(gpu),
        ):
            yield gpu
    finally:
        torch._C._set_only_lift_cpu_tensors(lifts_on_cpu)
        torch.__future__.set_overwrite_module_params_on_conversion(in_place)

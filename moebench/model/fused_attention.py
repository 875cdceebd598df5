"""torch's fused attention, without the kernel that computes wrong gradients on some GPUs."""

import re

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

OTHERS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Causal attention, or attention as masked; see `causal_attention`."""
    masked = None if mask is None else mask.unsqueeze(1)

    def attend() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, masked, is_causal=masked is None)

    if q.is_cuda and q.shape[-2] % 128 == 64 and cudnn_fails(q.device):
        with sdpa_kernel(OTHERS):
            return attend()
    return attend()


def cudnn_fails(device: torch.device) -> bool:
    """Whether cuDNN's backward may give NaN for sequences of 64 tokens modulo 128.

    It does on an H100 since torch 2.11 (github.com/pytorch/pytorch/issues/196678).
    """
    version = tuple(map(int, re.findall(r"\d+", torch.__version__)[:2]))
    return version >= (2, 11) and torch.cuda.get_device_capability(device) == (9, 0)

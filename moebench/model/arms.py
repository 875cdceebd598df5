"""The arm axis of stacked runs, in the vmap rules of our own operators."""

from typing import Any

import torch
from torch import Tensor


def mapped(info: Any, dims: tuple[int | None, ...], *tensors: Tensor) -> list[Tensor]:
    """Tensors with the arm axis first; a tensor that arms share is expanded.

    Args:
        info, dims: as a vmap rule gets them.
    """
    return [
        tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        for tensor, dim in zip(tensors, dims, strict=True)
    ]


def shifted(numbers: Tensor, of_each: int) -> Tensor:
    """[arms, n, ..] numbers below `of_each` in each arm, as [arms * n, ..] numbers in all arms."""
    offset = torch.arange(len(numbers), dtype=numbers.dtype, device=numbers.device) * of_each
    return (numbers + offset.view(-1, *(1,) * (numbers.ndim - 1))).flatten(0, 1)

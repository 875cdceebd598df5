"""Copies to a GPU for which the host does not wait."""

import torch
from torch import Tensor


def to_device(numbers: Tensor, device: torch.device | None) -> Tensor:
    """The same tensor on a device; None: where it is.

    A copy from the host to a GPU starts from pinned memory: from any other the host would wait.
    """
    if device is None or device.type != "cuda" or numbers.is_cuda:
        return numbers.to(device)
    return numbers.pin_memory().to(device, non_blocking=True)

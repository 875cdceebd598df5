"""What the host does without waiting for a GPU."""

import torch
from torch import Tensor


def to_device(numbers: Tensor, device: torch.device | None) -> Tensor:
    """The same tensor on a device; None: where it is.

    A copy from the host to a GPU starts from pinned memory: from any other the host would wait.
    """
    if device is None or device.type != "cuda" or numbers.is_cuda:
        return numbers.to(device)
    return numbers.pin_memory().to(device, non_blocking=True)


def can_look(values: Tensor) -> bool:
    """Whether the host can read values without waiting: not on a GPU, nor where none are known."""
    if values.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    # an interpreter exists only inside a transform of torch.func
    return torch._C._functorch.peek_interpreter_stack() is None  # pyright: ignore

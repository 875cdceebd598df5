"""What the pretended device holds, what is pinned on the host, and copies that are under way."""

import math
import weakref

import torch
from torch import Tensor

BLOCK = 512  # bytes; the allocator of a GPU rounds up to it


class Memory:
    """Bytes of the storages that a tensor of the device, or autograd, still holds."""

    def __init__(self) -> None:
        self.live = self.peak = 0
        self._holders: dict[int, int] = {}

    def hold(self, tensor: Tensor, host: Tensor) -> None:
        """Count the storage of `host` until every tensor that was held with it is gone."""
        storage = host.untyped_storage()
        address, size = storage.data_ptr(), -(-storage.nbytes() // BLOCK) * BLOCK
        if not address:
            return
        self._holders[address] = self._holders.get(address, 0) + 1
        if self._holders[address] == 1:
            self.live += size
            self.peak = max(self.peak, self.live)
        weakref.finalize(tensor, self._release, address, size).atexit = False

    def _release(self, address: int, size: int) -> None:
        self._holders[address] -= 1
        if not self._holders[address]:
            del self._holders[address]
            self.live -= size


class Pinned:
    """The storages on the host that a GPU can copy to and from without waiting."""

    def __init__(self) -> None:
        self._kept: dict[int, torch.UntypedStorage] = {}  # kept, so that no address is used again

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._kept[storage.data_ptr()] = storage
        return tensor

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._kept


class Underway:
    """Copies to pinned memory, which holds rubbish until an event or the device is waited for."""

    def __init__(self) -> None:
        self._copies: list[tuple[Tensor, Tensor]] = []

    def start(self, target: Tensor, values: Tensor) -> None:
        fill_with_rubbish(target)
        self._copies.append((target, values.clone()))

    def arrive(self) -> None:
        copies, self._copies = self._copies, []
        for target, values in copies:
            target.copy_(values)


def fill_with_rubbish(tensor: Tensor) -> Tensor:
    """What memory holds that nobody wrote: nan, or a large number."""
    if tensor.is_floating_point():
        return tensor.fill_(math.nan)
    return tensor.fill_(True if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max // 2)

"""Batches on the device that trains on them.

On a GPU the training tokens lie in its memory where they fit, so that a step moves only where its
sequences begin; else its tokens are copied while the GPU still works on the step before.
"""

import numpy as np
import torch
from torch import Tensor

from moebench.data.batches import Batches, Places

SHARE = 0.25  # of the free memory, that the tokens may take


class Feed:
    """Gives a step's tokens [sequences, seq_len + 1] on the device and its domains [sequences] on
    the CPU, both int64.

    Args:
        batches: the same numbers come out of them wherever the tokens lie.
        device: where to.
        resident: whether the tokens lie on the device; None finds out whether they fit.
    """

    def __init__(self, batches: Batches, device: torch.device, *, resident: bool | None = None):
        self.batches, self.device = batches, device
        streams = [batches.corpus.train(domain) for domain in batches.corpus.domains]
        if resident is None:
            resident = device.type == "cuda" and _fits(sum(each.nbytes for each in streams), device)
        self.resident = resident
        if resident:
            tokens = np.concatenate(streams)
            # torch computes with no unsigned type above uint8: the bits are read as signed ones
            self._mask = (1 << (8 * tokens.itemsize)) - 1
            signed = tokens if tokens.itemsize == 1 else tokens.view(f"<i{tokens.itemsize}")
            self._tokens = torch.from_numpy(signed).to(device)
            self._base = np.cumsum([0, *(len(each) for each in streams[:-1])])
            self._within = torch.arange(batches.seq_len + 1, device=device)

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        places = self.batches.places(step)
        domain = torch.from_numpy(places.domain)
        if not self.resident:
            return self._moved(self.batches.read(places)), domain
        return self._gathered(places), domain

    def _gathered(self, places: Places) -> Tensor:
        start = self._moved(places.start + self._base[places.domain])
        return self._tokens[start.unsqueeze(1) + self._within].long() & self._mask

    def _moved(self, numbers: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(numbers)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()  # else the copy would wait for the GPU
        return tensor.to(self.device, non_blocking=True)


def _fits(size: int, device: torch.device) -> bool:
    free, _ = torch.cuda.mem_get_info(device)
    return size <= SHARE * free

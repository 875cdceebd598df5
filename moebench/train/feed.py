"""Batches on the device that trains on them.

If all training tokens fit into a GPU's memory, they are kept there, and a step copies only the
places where its sequences start. Otherwise its tokens are copied while the GPU computes the step
before.
"""

from collections.abc import Sequence
from weakref import WeakValueDictionary

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from moebench.balance.devices import to_device
from moebench.data.batches import Batches, Places

MEMORY_SHARE = 0.25  # of the free memory, which the tokens may take


class Feed:
    """Returns a step's tokens [sequences, seq_len + 1] on the device and its domains [sequences] on
    the CPU, both int64.

    Args:
        batches: the source; the result does not depend on where the tokens are.
        device: of the result.
        named: whether one more token comes first, which names the domain.
        resident: whether all tokens are kept on the device; None: if they fit.
    """

    def __init__(
        self,
        batches: Batches,
        device: torch.device,
        *,
        named: bool = False,
        resident: bool | None = None,
    ):
        self.batches, self.device, self.named = batches, device, named
        streams = [batches.corpus.train(domain) for domain in batches.corpus.domains]
        if resident is None:
            resident = device.type == "cuda" and _fits(
                sum(stream.nbytes for stream in streams), device
            )
        self.resident = resident
        if resident:
            # torch has no arithmetic for unsigned types above uint8: the bits are read as signed
            bits = 8 * streams[0].itemsize
            above = bits > 8 and batches.corpus.vocab_size > 1 << (bits - 1)
            self._mask = (1 << bits) - 1 if above else None
            tokens = _on_device(batches.corpus.content_hash, streams, device)
            self._sequences = tokens.unfold(0, batches.seq_len + 1, 1)  # from each place on; a view
            self._base = np.cumsum([0, *(len(stream) for stream in streams[:-1])])

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        places = self.batches.places(step)
        domain = torch.from_numpy(places.domain)
        if self.resident:
            tokens = self._gather(places)
        else:
            tokens = self._to_device(self.batches.read(places))
        if self.named:
            own = self._to_device(places.domain)
            tokens = with_domain(tokens, own, self.batches.corpus.vocab_size)
        return tokens, domain

    def _gather(self, places: Places) -> Tensor:
        start = self._to_device(places.start + self._base[places.domain])
        tokens = self._sequences.index_select(0, start).long()
        return tokens if self._mask is None else tokens & self._mask

    def _to_device(self, numbers: np.ndarray) -> Tensor:
        return to_device(torch.from_numpy(numbers), self.device)


_RESIDENT: WeakValueDictionary[tuple[str, torch.device], Tensor] = WeakValueDictionary()


def _on_device(content: str, streams: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """All tokens on a device, one copy for all runs of the same data; wider types as signed."""
    tokens = _RESIDENT.get((content, device))
    if tokens is None:
        joined = np.concatenate(streams)
        signed = joined if joined.itemsize == 1 else joined.view(f"<i{joined.itemsize}")
        tokens = _RESIDENT[content, device] = torch.from_numpy(signed).to(device)
    return tokens


def with_domain(
    tokens: Int[Tensor, "sequences tokens"], domain: Int[Tensor, " sequences"], vocab_size: int
) -> Int[Tensor, "sequences tokens+1"]:
    """The sequences behind one more token each, which names the domain.

    Args:
        vocab_size: tokens of text; those of the domains follow them.
    """
    return torch.cat([vocab_size + domain[:, None], tokens], 1)


def _fits(size: int, device: torch.device) -> bool:
    free, _ = torch.cuda.mem_get_info(device)
    return size <= MEMORY_SHARE * free

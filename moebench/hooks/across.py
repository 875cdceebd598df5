"""What data-parallel ranks tell each other about a step: its layout, and sums."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from moebench.errors import ConfigError


class Across:
    """The data-parallel ranks of a trainer; one rank if `torch.distributed` does not run.

    Attributes:
        size, rank: how many there are, and this one's number.
        factor: of a gradient, so that the trainer's later mean over ranks gives the sum.
    """

    def __init__(self, group: dist.ProcessGroup | None, averaged: bool) -> None:
        running = dist.is_available() and dist.is_initialized()
        self._group = group
        self.size = dist.get_world_size(group) if running else 1
        self.rank = dist.get_rank(group) if running else 0
        self.factor = self.size if averaged else 1

    def summed(self, value: Tensor) -> Tensor:
        """A sum over ranks."""
        if self.size > 1:
            value = value.contiguous().clone()
            dist.all_reduce(value, group=self._group)
        return value

    def layout(self, masks: Sequence[Tensor]) -> tuple[list[int], Tensor, int]:
        """Where this rank's passes lie in the step: all ranks' first passes, then the second ones.

        Args:
            masks: [sequences, tokens] of each of this rank's passes.

        Returns:
            The position of each pass's first sequence; [passes, ranks] sequences; and the tokens of
            the step that are no padding.

        Raises:
            ConfigError: if ranks differ in the number of their passes.
        """
        device = masks[0].device
        number = self._gathered(torch.tensor([len(masks)], device=device))[:, 0].tolist()
        if len({*number}) > 1:
            raise ConfigError(
                f"passes of the ranks {number}: must be equally many; drop what is left over "
                "(drop_last), or pad with batches whose attention_mask is 0"
            )
        sizes = self._gathered(torch.tensor([len(mask) for mask in masks], device=device)).T
        total = self.summed(torch.stack([mask.sum() for mask in masks]).sum())
        first = sizes.flatten().cumsum(0).view_as(sizes) - sizes
        return first[:, self.rank].tolist(), sizes, int(total)

    def _gathered(self, value: Tensor) -> Tensor:
        """[ranks, ...] the values of all ranks."""
        if self.size == 1:
            return value[None]
        parts = [torch.empty_like(value) for _ in range(self.size)]
        dist.all_gather(parts, value, group=self._group)
        return torch.stack(parts)

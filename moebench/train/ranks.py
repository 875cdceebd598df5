"""Data parallelism by summing: each rank holds a part of a step, and sums are all-reduced.

Every term of the objective is a sum over a rank's own sequences divided by a count over the whole
step, so gradients are summed over ranks and never averaged. `torchrun --nproc-per-node N -m
moebench.cli train ...` starts N ranks; they change a result by rounding alone.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moebench.errors import ConfigError


@dataclass
class Ranks:
    """The processes that share a step; this one's number among them.

    Attributes:
        rank, size: this process, and how many there are.
        bytes, seconds: that balance counts took in all-reduces so far, on this rank.
        told: whether the first rank has said anything yet.
    """

    rank: int = 0
    size: int = 1
    bytes: int = 0
    seconds: float = 0.0
    told: bool = False

    @property
    def first(self) -> bool:
        """Whether this is the rank that evaluates and keeps the record."""
        return self.rank == 0

    def device(self, kind: str) -> torch.device:
        """This rank's device of a kind, `cpu` or `cuda`."""
        if kind == "cuda" and self.size > 1:
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device(kind)

    def give_up(self) -> None:
        """On the first rank: let ranks that still wait for its word know that none will come."""
        if self.size > 1 and not self.told:
            self.tell(None)

    def take(self, steps: int) -> dict[str, float]:
        """What the counts' all-reduces took a step since the last call; empty for one rank."""
        if self.size == 1:
            return {}
        found = {
            "balance/allreduce_bytes": self.bytes / steps,
            "balance/allreduce_seconds": self.seconds / steps,
        }
        self.bytes, self.seconds = 0, 0.0
        return found

    def tell(self, value: Any) -> Any:
        """What the first rank gives, on every rank."""
        if self.size == 1:
            return value
        word = [value]
        dist.broadcast_object_list(word)
        self.told = True
        return word[0]

    def share(self, first: int, length: int) -> slice:
        """This rank's part of consecutive sequences, which the ranks divide evenly."""
        own = length // self.size
        return slice(first + self.rank * own, first + (self.rank + 1) * own)

    def sum(self, value: Tensor) -> Tensor:
        """The sum over ranks, in a new tensor: the rank's own value stays what it is."""
        if self.size == 1:
            return value
        total = value.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    def sum_counts(self, counts: list[Tensor]) -> list[Tensor]:
        """`sum` of the counts of every balance term in one all-reduce, which is measured.

        On a GPU it waits for the result, so that the time is that of the all-reduce.
        """
        if self.size == 1 or not counts:
            return counts
        flat = torch.cat([each.flatten() for each in counts])
        if flat.is_cuda:
            torch.cuda.synchronize()
        began = time.perf_counter()
        flat = self.sum(flat)
        if flat.is_cuda:
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - began
        self.bytes += flat.numel() * flat.element_size()
        parts = flat.split([each.numel() for each in counts])
        return [part.view_as(each) for part, each in zip(parts, counts, strict=True)]

    def sum_gradients(self, model: nn.Module) -> None:
        """Replace each gradient by its sum over ranks, in one all-reduce."""
        if self.size == 1:
            return
        owners = list(model.parameters())
        each = [torch.zeros_like(owner) if owner.grad is None else owner.grad for owner in owners]
        flat = self.sum(torch.cat([grad.flatten() for grad in each]))
        for owner, grad in zip(owners, flat.split([grad.numel() for grad in each]), strict=True):
            owner.grad = grad.view_as(owner)

    def whole(self, value: Tensor, owns: list[slice], length: int, axis: int) -> Tensor:
        """A tensor over the sequences of a step of which each rank holds some.

        Args:
            value: this rank's, in the order of `owns`.
            owns: which sequences of the step these are.
            length: of the step.
            axis: of the sequences.
        """
        place = torch.cat([torch.arange(each.start, each.stop) for each in owns]).to(value.device)
        shape = list(value.shape)
        shape[axis] = length
        return self.sum(value.new_zeros(shape).index_copy(axis, place, value.detach()))


def world_size() -> int:
    """How many ranks torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """The ranks that torchrun started, joined for as long as the block runs; one without torchrun.

    Args:
        device: `cuda`, where each rank takes the GPU of its local number, or `cpu`.

    Raises ConfigError where torchrun's variables are there and the ranks cannot be joined.
    """
    size = world_size()
    if size == 1:
        yield Ranks()
        return
    try:
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
    except (RuntimeError, ValueError, LookupError) as error:
        raise ConfigError(
            f"WORLD_SIZE={size}: the ranks cannot be joined ({str(error).splitlines()[0]}); start "
            "them with torchrun, or unset WORLD_SIZE"
        ) from None
    try:
        yield Ranks(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()

"""Data parallelism by summing: each rank holds a part of a step, and sums are all-reduced.

Every term of the objective is a sum over a rank's own sequences divided by a count over the whole
step, so gradients are summed over ranks and never averaged. `torchrun --nproc-per-node N -m
moebench.cli train ...` starts N ranks; they change a result by rounding alone.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moebench.balance.devices import to_device
from moebench.errors import ConfigError


@dataclass
class Ranks:
    """The processes that share a step, and this one's number among them.

    Attributes:
        rank, size: this process, and how many there are.
        bytes, seconds: of the all-reduces of balance counts so far, on this rank.
        on_gpu: start and end of those whose seconds a GPU has not told yet.
        began: whether anything was broadcast yet.
    """

    rank: int = 0
    size: int = 1
    bytes: int = 0
    seconds: float = 0.0
    began: bool = False
    on_gpu: list[tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)

    @property
    def first(self) -> bool:
        """Whether this is the rank that evaluates and writes the record."""
        return self.rank == 0

    def device(self, kind: str) -> torch.device:
        """This rank's device of a kind, `cpu` or `cuda`."""
        if kind == "cuda" and self.size > 1:
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device(kind)

    def broadcast(self, value: Any) -> Any:
        """The first rank's value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, device=torch.device("cpu"))
        self.began = True
        return box[0]

    def abort(self) -> None:
        """On the first rank: release the ranks that still wait for its first broadcast."""
        if self.size > 1 and not self.began:
            self.broadcast(None)

    def pop_allreduce_cost(self, steps: int) -> dict[str, float]:
        """The mean cost a step of the counts' all-reduces since the last call; {} for one rank."""
        if self.size == 1:
            return {}
        for began, ended in self.on_gpu:
            ended.synchronize()
            self.seconds += began.elapsed_time(ended) / 1000
        self.on_gpu = []
        cost = {
            "balance/allreduce_bytes": self.bytes / steps,
            "balance/allreduce_seconds": self.seconds / steps,
        }
        self.bytes, self.seconds = 0, 0.0
        return cost

    def share(self, first: int, length: int) -> slice:
        """This rank's part of consecutive sequences, which the ranks divide evenly."""
        part = length // self.size
        return slice(first + self.rank * part, first + (self.rank + 1) * part)

    def sum(self, value: Tensor) -> Tensor:
        """The sum over ranks, in a new tensor; the rank's own value is left as it is."""
        if self.size == 1:
            return value
        total = value.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    def sum_counts(self, counts: list[Tensor]) -> list[Tensor]:
        """`sum` of the counts of every balance term in one all-reduce, whose cost is measured."""
        if self.size == 1 or not counts:
            return counts
        flat = torch.cat([count.flatten() for count in counts])
        with self._timed(flat):
            flat = self.sum(flat)
        self.bytes += flat.numel() * flat.element_size()
        parts = flat.split([count.numel() for count in counts])
        return [part.view_as(count) for part, count in zip(parts, counts, strict=True)]

    @contextmanager
    def _timed(self, tensor: Tensor) -> Iterator[None]:
        """Add the time of the block to `seconds`; on a GPU, when it is asked for."""
        if not tensor.is_cuda:
            start = time.perf_counter()
            yield
            self.seconds += time.perf_counter() - start
            return
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        yield
        ended.record()
        self.on_gpu.append((began, ended))

    def sum_gradients(self, model: nn.Module) -> None:
        """Replace each gradient by its sum over ranks, in one all-reduce."""
        if self.size == 1:
            return
        parameters = list(model.parameters())
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = flat.split([gradient.numel() for gradient in gradients])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def gather(self, value: Tensor, spans: list[slice], length: int, axis: int) -> Tensor:
        """A tensor over all sequences of a step, of which each rank holds some.

        Args:
            value: this rank's part, in the order of `spans`.
            spans: the sequences of the step that it holds.
            length: sequences in the step.
            axis: of the sequences.
        """
        place = torch.cat([torch.arange(span.start, span.stop) for span in spans])
        shape = list(value.shape)
        shape[axis] = length
        whole = value.new_zeros(shape)
        return self.sum(whole.index_copy(axis, to_device(place, value.device), value.detach()))


def world_size() -> int:
    """The number of ranks that torchrun started; 1 without it.

    Raises ConfigError if `WORLD_SIZE` is no such number.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if not size.isdecimal() or int(size) < 1:
        raise ConfigError(
            f"WORLD_SIZE={size}: must be a whole number of ranks, at least 1; start them with "
            "torchrun, or unset WORLD_SIZE"
        )
    return int(size)


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the ranks that torchrun started, while the block runs; one rank without torchrun.

    Args:
        device: `cuda`, where each rank uses the GPU of its local number, or `cpu`.

    Raises ConfigError if torchrun's variables are set and the ranks cannot be joined.
    """
    size = world_size()
    if size == 1:
        yield Ranks()
        return
    try:
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        # objects are broadcast by gloo: NCCL would wait for the GPU
        dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    except (RuntimeError, ValueError, LookupError) as error:
        raise ConfigError(
            f"WORLD_SIZE={size}: the ranks cannot be joined ({str(error).splitlines()[0]}); start "
            "them with torchrun, or unset WORLD_SIZE"
        ) from None
    try:
        yield Ranks(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()

"""The forward passes of a step: their batches, how they are called, and what lies within one."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from moebench.balance import Groups, Routing, no_routing
from moebench.errors import ConfigError

Batch = Mapping[str, Any] | Tensor  # keyword arguments of a model, or its only argument


@contextmanager
def quietly(device: torch.device) -> Iterator[None]:
    """Without gradients, and with the random generators as they were at the end."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad(), warnings.catch_warnings():
        # a reentrant checkpoint says so of each pass without gradient
        warnings.filterwarnings("ignore", "None of the inputs have requires_grad")
        yield


def call(model: nn.Module, batch: Batch) -> None:
    """A forward pass without a loss."""
    if isinstance(batch, Tensor):
        model(batch)
    else:
        model(**{name: value for name, value in batch.items() if name != "labels"})


def mask_of(batch: Batch) -> Tensor:
    """[sequences, tokens] bool, False where a token is padding."""
    if isinstance(batch, Tensor):
        return torch.ones(batch.shape[:2], dtype=torch.bool, device=batch.device)
    mask = batch.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return mask.bool()
    rows = [value for value in batch.values() if isinstance(value, Tensor) and value.dim() > 1]
    if not rows:
        raise ConfigError(f"a batch of {sorted(batch)}: has no tensor [sequences, tokens, ...]")
    return torch.ones(rows[0].shape[:2], dtype=torch.bool, device=rows[0].device)


def pass_bsz(passes: Tensor) -> int:
    """Sequences of a logical pass: those of all ranks in one forward pass."""
    sizes = {*passes.sum(1).tolist()}
    if len(sizes) > 1:
        raise ConfigError(
            f"passes of {sorted(sizes)} sequences: estimator='buffer' needs equally many in each; "
            "use estimator='exact'"
        )
    return sizes.pop()


def within_passes(groups: Groups, passes: Tensor) -> bool:
    """Whether each row of the tally is counted by one pass of one rank."""
    number = torch.arange(passes.numel(), device=passes.device)
    by_sequence = number.repeat_interleave(passes.flatten())
    pairs = groups.row * passes.numel() + by_sequence
    return len(pairs.unique()) == len(groups.row.unique()) and groups.first is None


def of_counts(counts: Sequence[Tensor]) -> Routing:
    """A routing that says no more than the counts of its layers."""
    layers = torch.cat(tuple(counts))
    nothing = no_routing(layers.shape[1], 0, layers.shape[2], like=layers)
    return nothing._replace(counts=layers)

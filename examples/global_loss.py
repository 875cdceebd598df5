"""A global balance loss for a loop that takes means over passes and ranks, for `moebench conform`.

    moebench conform examples/global_loss.py:GlobalLoss

It counts the whole step before the first pass, so it needs no state from pass to pass.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from moebench.balance import Routing, balance_loss, join, observe


def routing(router_logits: list[Tensor], top_k: int, mask: Tensor) -> Routing:
    """The routing of all layers, of logits [sequences, tokens, experts] each."""
    parts = [observe(logits, top_k=top_k, mask=mask) for logits in router_logits]
    return join(parts, along="layers")


def summed(value: Tensor) -> Tensor:
    """A sum over ranks."""
    dist.all_reduce(value)
    return value


class GlobalLoss:
    """The balance loss of each pass; their mean over passes and ranks is that of the step."""

    def begin(self, passes: list[tuple[list[Tensor], Tensor]], top_k: int) -> None:
        """Count the step's passes, of router logits and mask each."""
        counts = [routing(logits, top_k, mask).counts.sum(1) for logits, mask in passes]
        tokens = [mask.sum() for _, mask in passes]
        whole = summed(torch.stack(counts).sum(0))
        self.frequency = whole / whole.sum(-1, keepdim=True)  # [layers, experts]
        self.total = int(summed(torch.stack(tokens).sum()))
        self.parts = len(passes) * dist.get_world_size()

    def __call__(self, router_logits: list[Tensor], top_k: int, mask: Tensor) -> Tensor:
        mass = routing(router_logits, top_k, mask).prob_mass
        f = self.frequency[:, None].expand_as(mass)
        return self.parts * balance_loss(f, mass, total=self.total)

"""A scope of your own: every n-th sequence of a step is in one balance group.

    moebench train --plugin examples/strided_scope.py scope=strided balance_bsz=8

With groups of `balance_bsz` sequences there are n = global_bsz / balance_bsz groups, and sequence s
belongs to group s mod n. Data comes micro-batch by micro-batch, so a group spans the whole step.
"""

from dataclasses import dataclass

import torch

from moebench.balance import Scope
from moebench.scopes import register


@register(
    "strided",
    "Balance every n-th sequence of the step, in groups of balance_bsz sequences.",
    size="micro_bsz",  # the default of balance_bsz
    contiguous=False,  # so that balance.estimator=buffer stays the prefix over logical passes
    equals={1: "sequence", "global_bsz": "global"},  # sizes at which it is a scope that exists
)
@dataclass(frozen=True)
class Strided(Scope):
    """Groups of `size` sequences that lie equally far apart in the step."""

    size: int

    def labels(
        self,
        sequences: int,
        domain: torch.Tensor | None = None,
        device: torch.device | None = None,
    ) -> tuple[torch.Tensor, int]:
        """The group of each sequence, and how many groups there are."""
        groups = sequences // self.size
        return torch.arange(sequences, device=device) % groups, groups

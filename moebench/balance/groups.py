"""The balance groups of one step: the tallies of their counts, and from these f.

Each pass and each rank counts its own sequences: its *tally* holds the counts that it adds to each
group. Tallies are whole numbers, so their sum is exact in any order. f is this sum, normalised.
"""

from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from moebench.balance.routing import Routing


class Groups(NamedTuple):
    """A scope applied to the sequences of one step.

    Attributes:
        row: [sequences] the row of the tally that each sequence adds to and meets.
        group: [rows] the balance group of each row. A group has one row; if f is a prefix over
            logical passes, it has one row for each pass with sequences of the group.
        num_groups: the number of groups, including those without sequences in this step.
        first: [rows] the first row of the same group, if f is a prefix; else None.
        drawn: [rows, draws] positions of the tokens in the step that each row counts instead of
            its own sequences; -1 for none. None unless the scope draws.
    """

    row: Int[Tensor, " sequences"]
    group: Int[Tensor, " rows"]
    num_groups: int
    first: Int[Tensor, " rows"] | None = None
    drawn: Int[Tensor, "rows draws"] | None = None

    def tally(self, routing: Routing, start: int = 0) -> Tensor:
        """[layers, rows, experts] the counts that consecutive sequences add, without gradient.

        Args:
            routing: of these sequences.
            start: the position of the first of them in the step.
        """
        counts = routing.counts.detach()
        layers, sequences, experts = counts.shape
        empty = counts.new_zeros(layers, len(self.group), experts)
        if self.drawn is None:
            return empty.index_add(1, self.row[start : start + sequences], counts)
        tokens = routing.expert_index.shape[2]
        place = self.drawn - start * tokens
        inside = (place >= 0) & (place < sequences * tokens)
        place = place.clamp(0, sequences * tokens - 1)
        selected = routing.expert_index.flatten(1, 2)[:, place].flatten(2)  # [layers, rows, ...]
        ones = inside.repeat_interleave(routing.expert_index.shape[3], dim=1) & (selected >= 0)
        return empty.scatter_add(2, selected.clamp(min=0), ones.to(counts.dtype))

    def frequency(
        self, tally: Tensor, past: Tensor | None = None
    ) -> Float[Tensor, "layers sequences experts"]:
        """The f that each sequence meets; rows sum to 1.

        Args:
            tally: [layers, rows, experts], complete for the rows that are used.
            past: [layers, groups, experts] counts of earlier steps to add.

        Returns:
            [layers, sequences, experts] in the dtype of `tally`; whole numbers give fp32.
        """
        if self.first is not None:
            running = F.pad(tally.cumsum(1), (0, 0, 1, 0))
            tally = running[:, 1:] - running[:, self.first]
        if past is not None:
            tally = tally + past[:, self.group]
        return normalise(tally)[:, self.row]

    def by_group(self, tally: Tensor) -> Tensor:
        """[layers, groups, experts] the tally of a whole step, summed over each group's rows."""
        empty = tally.new_zeros(tally.shape[0], self.num_groups, tally.shape[2])
        return empty.index_add(1, self.group, tally)


def normalise(counts: Tensor) -> Tensor:
    """Counts as shares of their sum; whole numbers give fp32."""
    counts = counts if counts.is_floating_point() else counts.float()
    return counts / counts.sum(-1, keepdim=True)

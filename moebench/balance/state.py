"""How f is estimated before a whole group was counted, and the state that this takes.

`exact` counts the whole group before it trains on any of it. `buffer` is the paper's Algorithm 1:
the prefix over the logical passes of a step. `stale` uses the f of the last step, and `ema` a
moving average over all earlier steps. A window adds the counts of earlier steps.

All functions are pure. The training loop owns the state, and replaces it once per optimizer step by
the counts of the whole step. Evaluations, counting passes and skipped steps do not change it.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from moebench.balance.groups import Groups, normalise

Name = Literal["exact", "buffer", "stale", "ema"]


class BalanceState(NamedTuple):
    """The state of a balance term between steps.

    Attributes:
        average: [layers, groups, experts] the f of `stale` and `ema`; uniform at first.
        past: [window_steps - 1, layers, groups, experts] counts of the last steps, oldest first;
            0 at first.
    """

    average: Float[Tensor, "layers groups experts"]
    past: Tensor


@dataclass(frozen=True)
class Estimator:
    """How the f of a balance group is estimated.

    Attributes:
        name: `exact`, `buffer`, `stale` or `ema`.
        pass_bsz: sequences in a logical pass of `buffer`.
        window_steps: steps whose counts are summed, up to the current one (for `stale` and `ema`,
            up to the last one).
        decay: beta of `ema`: f <- beta f + (1 - beta) F of the last step.
    """

    name: Name = "exact"
    pass_bsz: int | None = None
    window_steps: int = 1
    decay: float = 0.0

    @property
    def looks_back(self) -> bool:
        """Whether f comes from earlier steps alone."""
        return self.name in ("stale", "ema")

    @property
    def prefix(self) -> int | None:
        """Sequences in a logical pass, where f is a prefix over them."""
        return self.pass_bsz if self.name == "buffer" else None

    @property
    def carries(self) -> bool:
        """Whether there is a state between steps."""
        return self.looks_back or self.window_steps > 1

    def begin(
        self, layers: int, num_groups: int, experts: int, device: torch.device | None = None
    ) -> BalanceState:
        """The state before the first step."""
        shape = (layers, num_groups, experts)
        return BalanceState(
            average=torch.full(shape, 1 / experts, device=device),
            past=torch.zeros((self.window_steps - 1, *shape), dtype=torch.int64, device=device),
        )

    def frequency(
        self, groups: Groups, tally: Tensor | None, state: BalanceState | None
    ) -> Float[Tensor, "layers sequences experts"]:
        """The f that each sequence meets in this step.

        Args:
            groups: of the step's scope, with the prefix of this estimator.
            tally: [layers, rows, experts] complete for the rows that are used; None if f comes
                from earlier steps.
            state: after the last step; None if the estimator has none.
        """
        if self.looks_back:
            assert state is not None
            return state.average[:, groups.group[groups.row]]
        assert tally is not None
        past = None if state is None or self.window_steps == 1 else state.past.sum(0)
        return groups.frequency(tally, past)

    def update(self, state: BalanceState, counts: Tensor) -> BalanceState:
        """The state after a step.

        Args:
            state: before it.
            counts: [layers, groups, experts] of the whole step, over all passes and ranks. A
                group without any (a domain that the step lacks) keeps its average.
        """
        recent = counts + state.past.sum(0).to(counts.dtype)
        there = recent.sum(-1, keepdim=True) > 0
        decay = self.decay if self.name == "ema" else 0.0
        moved = decay * state.average + (1 - decay) * normalise(recent)
        past = torch.cat([state.past, counts[None].to(state.past.dtype)])[1:]
        return BalanceState(average=moved.where(there, state.average), past=past)

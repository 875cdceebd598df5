"""Experts that are added or removed during training, by a mask that changes with the step.

*Growth*: a layer starts with e_0 of its E experts. The others are added one by one, the same number
in every layer, until all are active after n steps. *Pruning*: an expert retires for good, in its
layer alone, if its load over the last m steps was below a given multiple of its even share.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from moebench.balance.method import Method, Steering
from moebench.balance.routing import Routing


class ScheduleState(NamedTuple):
    """Which experts are active.

    Attributes:
        done: steps so far.
        active: [layers, experts] active in the next step.
        retired: [layers, experts] removed for good.
        watched: [layers, experts] active since `counts` began.
        counts: [layers, experts] assignments since the last check.
    """

    done: Int[Tensor, ""]
    active: Bool[Tensor, "layers experts"]
    retired: Bool[Tensor, "layers experts"]
    watched: Bool[Tensor, "layers experts"]
    counts: Int[Tensor, "layers experts"]


@dataclass(frozen=True)
class Schedule(Method):
    """Growth, pruning, or both.

    Attributes:
        top_k: experts for each token; at least as many stay active.
        start: experts at first; None: all.
        full_at: steps after which all are active.
        prune_below: utilisation c_i / mean(c) over the active experts, below which an expert
            retires; 0: none does.
        prune_every: steps over which utilisation is taken; an expert added meanwhile stays.
    """

    top_k: int
    start: int | None = None
    full_at: int = 0
    prune_below: float = 0.0
    prune_every: int = 1

    State: ClassVar[type] = ScheduleState

    def begin(self, layers: int, experts: int, device: torch.device | None = None) -> ScheduleState:
        done = torch.zeros((), dtype=torch.int64, device=device)
        none = torch.zeros(layers, experts, dtype=torch.bool, device=device)
        active = self._grown(done, none)
        return ScheduleState(done, active, none, active, none.long())

    def _grown(self, done: Tensor, like: Tensor) -> Bool[Tensor, "layers experts"]:
        """The experts that would be active if none had retired."""
        experts = like.shape[-1]
        place = torch.arange(experts, device=like.device).expand_as(like)
        if self.start is None:
            return place >= 0
        more = (experts - self.start) * done // max(1, self.full_at)
        return place < (self.start + more)

    def steering(self, state: ScheduleState) -> Steering:
        return Steering(mask=state.active)

    def update(
        self,
        state: ScheduleState,
        routing: Routing,
        mask: Bool[Tensor, "layers experts"] | None = None,
    ) -> ScheduleState:
        done = state.done + 1
        counts = state.counts + routing.counts.sum(1)
        due = done % self.prune_every == 0
        retired = state.retired | (self._idle(state, counts) & due)
        active = self._grown(done, retired) & ~retired
        return ScheduleState(
            done,
            active,
            retired,
            watched=active.where(due, state.watched & active),
            counts=counts.where(~due, 0),
        )

    def _idle(self, state: ScheduleState, counts: Tensor) -> Bool[Tensor, "layers experts"]:
        """Experts that are used too little, but for the most used ones, so that `top_k` remain."""
        there = state.active
        mean = counts.sum(-1, keepdim=True) / there.sum(-1, keepdim=True)
        few = state.watched & there & (counts < self.prune_below * mean)
        best = counts.masked_fill(~there, -1).topk(self.top_k, dim=-1).indices
        return few.scatter(-1, best, False)

    def metrics(self, state: ScheduleState) -> dict[str, Tensor]:
        """Experts of a layer that there are, mean over layers."""
        return {"active_experts": state.active.sum(-1).double().mean()}

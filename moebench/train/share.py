"""One arm's step while its passes run: what it counts, its loss, and its outcome.

The f of a balance group is that of its estimator, whatever the split into passes. Where a pass
needs counts of sequences that no pass has seen by then, a counting pass without gradient comes
first.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moebench.balance import (
    BalanceState,
    Groups,
    Routing,
    Term,
    balance_loss,
    detached,
    join,
    of_own_scores,
    selected_mass,
    z_loss,
)
from moebench.balance.devices import to_device
from moebench.model.transformer import MoETransformer
from moebench.train.ranks import Ranks
from moebench.train.step import Inputs, Objective, Outcome, Step, method_states, steering_in


class ActiveTerm(NamedTuple):
    """A term that acts in this step, or whose counts later steps need.

    Attributes:
        number: among the terms of the objective.
        weight: in this step.
        groups: of its scope in this step.
        state: after the last step; None where nothing is carried.
        sequence_weight: [sequences] weight by domain; None: 1.
    """

    number: int
    term: Term
    weight: float
    groups: Groups
    state: BalanceState | None
    sequence_weight: Tensor | None

    def loss(
        self,
        objective: Objective,
        tally: Tensor | None,
        routing: Routing,
        span: slice,
        total: int,
    ) -> Tensor:
        """The unscaled balance loss of a pass.

        Args:
            tally: of the groups, complete for the sequences of the pass.
            routing: of the pass.
            span: its sequences.
            total: routed tokens of the whole step.
        """
        frequency = objective.estimator.frequency(self.groups, tally, self.state)
        return balance_loss(
            frequency[:, span],
            routing.prob_mass if objective.probs == "full" else selected_mass(routing),
            total=total,
            layers=objective.layers,
            weight=None if self.sequence_weight is None else self.sequence_weight[span],
        )


def active_terms(objective: Objective, step: Step, states: Sequence[Any]) -> list[ActiveTerm]:
    """The terms that act in a step, or whose counts later steps need."""
    active = []
    for number, (term, state) in enumerate(zip(objective.terms, states, strict=False)):
        weight = term.weight_at(step.number)
        if not weight and state is None:
            continue
        groups = step.groups(term.scope, objective.estimator.prefix)
        active.append(ActiveTerm(number, term, weight, groups, state, _sequence_weight(term, step)))
    return active


def _sequence_weight(term: Term, step: Step) -> Tensor | None:
    if term.domain_weights is None:
        return None
    assert step.domain is not None
    return to_device(torch.tensor(term.domain_weights)[step.domain], step.tokens.device)


def tallies_of(terms: Sequence[ActiveTerm], routing: Routing, span: slice) -> list[Tensor]:
    """What a pass adds to the tally of each term."""
    routing = of_own_scores(routing)
    return [term.groups.tally(routing, span.start) for term in terms]


def added(tallies: list[Tensor], new: list[Tensor]) -> list[Tensor]:
    """The sums of two lists of tallies; an empty first list counts as zeros."""
    return [a + b for a, b in zip(tallies, new, strict=True)] if tallies else new


class ArmStep:
    """One step of one arm, while its passes run.

    Attributes:
        counting: whether a counting pass comes first.
        sharing: whether the ranks add up their counts in every pass.
    """

    def __init__(self, objective: Objective, step: Step, states: Sequence[Any]) -> None:
        self.objective, self.step = objective, step
        self.methods = method_states(objective, states)
        self.steering = steering_in(step, objective, states)
        self.terms = active_terms(objective, step, states)
        self.counting = not self._complete_in_time(together=True)
        self.sharing = step.ranks.size > 1 and not (
            self.counting or self._complete_in_time(together=False)
        )
        self.tallies: list[Tensor] = []
        self.nats: Tensor | None = None
        penalizes = any(method.penalizes for method in objective.methods)
        self.penalty = torch.zeros((), device=step.tokens.device) if penalizes else None
        self.losses: dict[int, Tensor] = {}
        self.routings: list[Routing] = []

    def inputs(self, span: slice) -> Inputs:
        """The inputs of a pass."""
        return self.step.inputs(span, self.steering)

    def penalize(self, model: MoETransformer) -> None:
        """Add the gradients of the penalties on weights, which belong to no pass."""
        for method, state in self.methods:
            draws = torch.Generator().manual_seed(self.step.seed)
            routers, experts = model.router_weights, model.expert_weights
            for value in (
                method.weight_penalty(state, routers),
                method.expert_penalty(state, routers, experts, draws),
            ):
                if value is not None:
                    value = value / self.step.ranks.size  # the ranks sum their values
                    value.backward()
                    self._add_penalty(value)

    def _add_penalty(self, value: Tensor) -> None:
        assert self.penalty is not None, "a method with a penalty says so"
        self.penalty = self.penalty + value.detach()

    def count(self, routing: Routing, span: slice) -> None:
        """Add the counts of a counting pass."""
        self.tallies = added(self.tallies, tallies_of(self.terms, routing, span))

    def share_counts(self) -> None:
        """Add the counts of the other ranks, after the last counting pass."""
        self.tallies = self.step.ranks.sum_counts(self.tallies)
        self.counting = True  # in a stack, all arms are counted if one needs it

    def loss(self, nats: Tensor | None, routing: Routing, span: slice) -> Tensor:
        """The part of the objective that a pass adds, with its gradient."""
        objective, total = self.objective, self.step.total
        assert nats is not None
        nats = nats / self.step.targets
        loss = nats + objective.z * z_loss(routing, total=total) if objective.z else nats
        if not self.counting:
            new = tallies_of(self.terms, routing, span)
            new = self.step.ranks.sum_counts(new) if self.sharing else new
            self.tallies = added(self.tallies, new)
        for active, tally in zip(self.terms, self.tallies, strict=True):
            if active.weight:
                value = active.loss(objective, tally, routing, span, total)
                loss = loss + active.weight * objective.uniform * value
                before = self.losses.get(active.number)
                own = value.detach()
                self.losses[active.number] = own if before is None else before + own
        for method, state in self.methods:
            value = method.penalty(state, routing, total)
            if value is not None:
                loss = loss + value
                self._add_penalty(value)
        self.nats = nats.detach() if self.nats is None else self.nats + nats.detach()
        self.routings.append(detached(routing._replace(outputs=None)))
        return loss

    def outcome(self) -> Outcome:
        """The values of the whole step, after its last pass."""
        objective, ranks = self.objective, self.step.ranks
        assert self.nats is not None
        tallies = self._tallies_of_all_ranks()
        own = [self.nats, *self.losses.values(), *([] if self.penalty is None else [self.penalty])]
        nats, *values = own if ranks.size == 1 else ranks.sum(torch.stack(own))
        penalty = None if self.penalty is None else values.pop()
        losses = dict(zip(self.losses, values, strict=True))
        zero = nats if len(losses) == len(objective.terms) else torch.zeros_like(nats)
        balance = [
            (term.weight_at(self.step.number), losses.get(number, zero))
            for number, term in enumerate(objective.terms)
        ]
        states: list[Any] = [None for _ in objective.terms]
        for active, tally in zip(self.terms, tallies, strict=True):
            if active.state is not None:
                counts = active.groups.by_group(tally)
                states[active.number] = objective.estimator.update(active.state, counts)
        routing = _of_step(self.routings, self.step)
        mask = None if self.steering is None else self.steering.mask
        states += [method.update(state, routing, mask) for method, state in self.methods]
        return Outcome(nats, balance, penalty, routing, states)

    def _complete_in_time(self, *, together: bool) -> bool:
        """Whether each pass has seen, by its end, all sequences whose counts its f needs.

        Args:
            together: whether a pass has seen what all ranks did in its round, or its own rank
                alone; that must then hold for every rank.
        """
        step, estimator, size = self.step, self.objective.estimator, self.step.ranks.size
        if estimator.looks_back or (step.device_bsz * size == step.sequences and together):
            return True
        views = [Ranks(rank, size) for rank in range(1 if together else size)]
        for scope in {active.term.scope for active in self.terms if active.weight}:
            counted = scope.members(step.sequences, domain=step.domain, pass_bsz=estimator.prefix)
            for ranks in views:
                seen = torch.zeros(step.sequences, dtype=torch.bool)
                for spans in step.rounds(ranks):
                    span = spans[together]
                    seen[span] = True
                    if (counted[span].any(0) & ~seen).any():
                        return False
        return True

    def _tallies_of_all_ranks(self) -> list[Tensor]:
        if self.objective.estimator.carries and not (self.counting or self.sharing):
            return self.step.ranks.sum_counts(self.tallies)
        return self.tallies


def _of_step(parts: Sequence[Routing], step: Step) -> Routing:
    """The routing of the step on every rank, its sequences in the order of the data."""
    routing, passes, ranks = join(parts, along="sequences"), step.passes(), step.ranks
    if ranks.size == 1 and step.order is None:
        return routing
    fields = {name: value for name, value in routing._asdict().items() if value is not None}
    if ranks.size > 1:
        return Routing(
            **{
                name: ranks.gather(value, passes, step.sequences, axis=1)
                for name, value in fields.items()
            }
        )
    place = torch.cat([torch.arange(span.start, span.stop) for span in passes]).argsort()
    place = place.to(routing.counts.device)
    return Routing(**{name: value.index_select(1, place) for name, value in fields.items()})

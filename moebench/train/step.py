"""One optimizer step's gradients: every term a sum over own sequences divided by a global count.

A step is split into physical passes of any size, on any number of ranks. The f of a balance group
is that of its estimator, whatever the split: where a pass needs counts that no pass before it has
seen, a counting pass without gradient comes first. The losses and gradients of passes and ranks
then simply add.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from moebench.balance import (
    BalanceState,
    Estimator,
    Groups,
    Method,
    Routing,
    Steering,
    Term,
    balance_loss,
    detached,
    join,
    merged,
    of_own_scores,
    selected_mass,
    z_loss,
)
from moebench.balance.losses import Layers
from moebench.model.noise import keys
from moebench.model.transformer import MoETransformer
from moebench.train.ranks import Ranks


@dataclass(frozen=True)
class Objective:
    """mean cross-entropy + sum over terms of weight * uniform * LBL + z * z-loss + penalties.

    Attributes:
        terms: over which scopes the router is balanced, how strongly and when.
        micro_bsz: sequences in a logical micro-batch.
        z: weight of the z-loss.
        estimator: how the f of every term is had.
        layers: how layers are put together, see `balance_loss`.
        uniform: value of a term at uniform routing: 1, or top_k.
        probs: whether f meets the router's full distribution, or that over the selected experts.
        methods: what acts beside the losses, see `balance/method.py`.
    """

    terms: tuple[Term, ...]
    micro_bsz: int
    z: float = 0.0
    estimator: Estimator = Estimator()
    layers: Layers = "mean"
    uniform: float = 1.0
    probs: Literal["full", "top_k"] = "full"
    methods: tuple[Method, ...] = ()


class Outcome(NamedTuple):
    """What a step computed, over all its passes and ranks; gradients lie in the parameters.

    Attributes:
        cross_entropy: mean over all target tokens, in nats.
        balance: of each term of the objective, its weight in this step and its unscaled loss; 0
            for one that does not act.
        penalty: of the methods, weighted.
        routing: of the whole step, detached; with several ranks, all but what it says of single
            tokens (`expert_index`, `weights`), which is of this rank's.
        states: of each term, then of each method, after this step; None where nothing is carried.
    """

    cross_entropy: Tensor
    balance: list[tuple[float, Tensor]]
    penalty: Tensor
    routing: Routing
    states: list[Any]


# of `Routing`: what every rank of a step knows of all its sequences
WHOLE = ("counts", "prob_mass", "logsumexp_sq", "topk_mass", "own_counts", "dropped", "scores")


class _Live(NamedTuple):
    """A term that acts in this step, or whose counts later steps will want."""

    number: int  # among the terms of the objective
    term: Term
    weight: float
    groups: Groups
    state: BalanceState | None
    of_sequence: Tensor | None  # [sequences] weight by domain


@dataclass(frozen=True)
class Step:
    """The sequences of one optimizer step, and how they are gone through.

    Attributes:
        tokens: [sequences, seq_len + 1] of the whole step; inputs and targets overlap.
        device_bsz: sequences in a physical pass of a rank.
        number: of the step, counted from 1; the weights of terms depend on it.
        domain: [sequences] of the whole step, on the CPU, for terms that ask for it.
        seed: keyed by (seed, step), of what scopes and routers draw.
        draws: whether routers draw anything, by a key for each sequence.
        ranks: the processes that share the step. Each round of consecutive sequences is divided
            among them, so that a round is on all ranks what a pass is on one.
        order: in which the rounds are made; None: in the order of the data.
    """

    tokens: Tensor
    device_bsz: int
    number: int = 1
    domain: Tensor | None = None
    seed: int = 0
    draws: bool = False
    ranks: Ranks = field(default_factory=Ranks)
    order: Sequence[int] | None = None

    @property
    def sequences(self) -> int:
        return self.tokens.shape[0]

    @property
    def total(self) -> int:
        """Target tokens of the whole step."""
        return self.sequences * (self.tokens.shape[1] - 1)

    def rounds(self, ranks: Ranks) -> list[tuple[slice, slice]]:
        """The sequences of each pass, in order: those of the rank, and those of all of them."""
        length = self.device_bsz * ranks.size
        starts = range(0, self.sequences, length)
        starts = [starts[each] for each in self.order] if self.order is not None else starts
        return [(ranks.share(each, length), slice(each, each + length)) for each in starts]

    def passes(self) -> list[slice]:
        """The sequences of each pass of this rank, in order."""
        return [own for own, _ in self.rounds(self.ranks)]


def begin_states(objective: Objective, model: MoETransformer, step: Step) -> list[Any]:
    """The state of each term, then of each method, before the first step; None where nothing is
    carried."""
    estimator, (layers, experts), device = (
        objective.estimator,
        model.router_shape,
        step.tokens.device,
    )
    of_terms = [
        estimator.begin(layers, _groups(term, objective, step).num_groups, experts, device)
        if estimator.carries
        else None
        for term in objective.terms
    ]
    return [*of_terms, *(each.begin(layers, experts, device) for each in objective.methods)]


def state_kinds(objective: Objective) -> list[type | None]:
    """The NamedTuple of each state, in the order of `begin_states`; None where there is none."""
    of_terms = [BalanceState if objective.estimator.carries else None for _ in objective.terms]
    return [*of_terms, *(each.State for each in objective.methods)]


def steering_after(
    objective: Objective, model: MoETransformer, states: Sequence[Any] | None
) -> Steering | None:
    """What steers the forward passes after a step, from its states; None: nothing does.

    Args:
        states: None: before the first step.
    """
    if states is None:
        shape, device = model.router_shape, model.embedding.device
        states = [
            *(None for _ in objective.terms),
            *(each.begin(*shape, device) for each in objective.methods),
        ]
    return _steering(objective, states)


def _steering(
    objective: Objective, states: Sequence[Any], step: Step | None = None
) -> Steering | None:
    pairs = list(zip(objective.methods, states[len(objective.terms) :], strict=True))
    found = merged([method.steering(state) for method, state in pairs])
    if step is not None and step.draws:
        found = found._replace(noise=keys(step.seed, step.sequences, step.tokens.device))
    return found if pairs or found.noise is not None else None


class Inputs(NamedTuple):
    """Of a forward pass.

    Attributes:
        tokens: [sequences, seq_len].
        steering: of the selection of experts; None: nothing steers.
        targets: [sequences, seq_len], the tokens that follow; None where a pass only counts.
    """

    tokens: Tensor
    steering: Steering | None
    targets: Tensor | None


Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]
Forward = Callable[[list[Inputs]], Sequence[tuple[Tensor | None, Routing]]]


def forward_of(model: MoETransformer, wrap: Wrap | None = None) -> Forward:
    """From the inputs of one arm to the sum of its nats, which is None without targets, and its
    routing.

    Args:
        wrap: what this is wrapped in, as `torch.compile`. The cross-entropy lies within: with a
            large vocabulary that saves as much as all the rest of a compilation does.
    """

    def call(
        tokens: Tensor, steering: Steering | None, targets: Tensor | None
    ) -> tuple[Tensor | None, Routing]:
        logits, routing = model(tokens, steering, training=True)
        return None if targets is None else summed_nats(logits, targets), routing

    wrapped = call if wrap is None else wrap(call)
    return lambda inputs: [wrapped(*inputs[0])]


def summed_nats(logits: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy of all target tokens, summed."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


def accumulate_gradients(
    model: MoETransformer,
    objective: Objective,
    step: Step,
    states: Sequence[Any] | None = None,
    forward: Forward | None = None,
) -> Outcome:
    """Add the gradient of one step's objective to the parameters, summed over ranks.

    `step.device_bsz`, `step.order` and `step.ranks` change the result by rounding alone.

    Args:
        states: of each term and method before this step; None before the first.
        forward: of the model; None: `forward_of` it.
    """
    own = Share(objective, step, states or begin_states(objective, model, step))
    own.penalize(model)
    [outcome] = accumulate_together(forward or forward_of(model), [own])
    step.ranks.sum_gradients(model)
    return outcome


def accumulate_together(forward: Forward, shares: Sequence["Share"]) -> list[Outcome]:
    """Go through the steps of several arms of equal shape side by side, with one backward a pass.

    Args:
        forward: from the inputs of each arm to its nats and routing.
        shares: of each arm, of equally many sequences in equally large passes.
    """
    passes = shares[0].step.passes()

    if any(each.counting for each in shares):
        with torch.no_grad():
            for own in passes:
                inputs = [each.inputs(own)._replace(targets=None) for each in shares]
                for each, (_, routing) in zip(shares, forward(inputs), strict=True):
                    each.count(routing, own)
        for each in shares:
            each.share_counts()
    for own in passes:
        found = zip(shares, forward([each.inputs(own) for each in shares]), strict=True)
        losses = [each.loss(*outputs, own) for each, outputs in found]
        reduce(torch.add, losses).backward()
    return [each.outcome() for each in shares]


class Share:
    """One arm's part of a step, while it is gone through."""

    def __init__(self, objective: Objective, step: Step, states: Sequence[Any]) -> None:
        self.objective, self.step = objective, step
        self.methods = list(zip(objective.methods, states[len(objective.terms) :], strict=True))
        self.steering = _steering(objective, states, step)
        self.live = _live(objective, step, states)
        ranks = step.ranks
        looks_back = objective.estimator.looks_back
        asking = [] if looks_back else [each.term for each in self.live if each.weight]
        alone = [Ranks(0, ranks.size)]
        self.counting = not _seen_in_time(asking, objective, step, alone, together=True)
        everyone = [Ranks(rank, ranks.size) for rank in range(ranks.size)]
        self.sharing = (
            ranks.size > 1
            and not self.counting
            and not _seen_in_time(asking, objective, step, everyone)
        )
        self.tallies: list[Tensor] = []
        self.nats = torch.zeros((), device=step.tokens.device)
        self.penalty = torch.zeros_like(self.nats)
        self.losses = {each.number: torch.zeros_like(self.nats) for each in self.live}
        self.seen: list[Routing] = []

    def inputs(self, own: slice) -> Inputs:
        """Of a pass."""
        return _inputs(self.step, own, self.steering)

    def penalize(self, model: MoETransformer) -> None:
        """Go backward from the penalties of the routers' weights, which no pass has a part in."""
        for method, state in self.methods:
            value = method.weight_penalty(state, model.router_weights)
            if value is not None:
                value = value / self.step.ranks.size  # the ranks add theirs up
                value.backward()
                self.penalty = self.penalty + value.detach()

    def count(self, routing: Routing, own: slice) -> None:
        """Count a pass before any is trained on."""
        self.tallies = _added(self.tallies, _tallies(self.live, routing, own))

    def share_counts(self) -> None:
        """Add what the other ranks have counted."""
        self.tallies = self.step.ranks.sum_counts(self.tallies)
        self.counting = True  # with others in a stack, an arm may be counted that need not be

    def loss(self, nats: Tensor | None, routing: Routing, own: slice) -> Tensor:
        """What a pass adds to the objective, to go backward from."""
        objective, estimator, total = self.objective, self.objective.estimator, self.step.total
        assert nats is not None
        nats = nats / total
        loss = nats + objective.z * z_loss(routing, total=total) if objective.z else nats
        if not self.counting:
            new = _tallies(self.live, routing, own)
            new = self.step.ranks.sum_counts(new) if self.sharing else new
            self.tallies = _added(self.tallies, new)
        for each, tally in zip(self.live, self.tallies, strict=True):
            if each.weight:
                f = estimator.frequency(each.groups, tally, each.state)
                value = _unscaled(objective, each, f, routing, own, total)
                loss = loss + each.weight * objective.uniform * value
                self.losses[each.number] = self.losses[each.number] + value.detach()
        for method, state in self.methods:
            value = method.penalty(state, routing, total)
            if value is not None:
                loss = loss + value
                self.penalty = self.penalty + value.detach()
        self.nats = self.nats + nats.detach()
        self.seen.append(detached(routing._replace(outputs=None)))
        return loss

    def outcome(self) -> Outcome:
        """What the whole step came to."""
        objective, estimator, ranks = self.objective, self.objective.estimator, self.step.ranks
        tallies = self.tallies
        if estimator.carries and not (self.counting or self.sharing):
            tallies = ranks.sum_counts(tallies)
        sums = torch.stack([self.nats, self.penalty, *self.losses.values()])
        nats, penalty, *values = ranks.sum(sums)
        found = dict(zip(self.losses, values, strict=True))
        after: list[Any] = [None for _ in objective.terms]
        for each, tally in zip(self.live, tallies, strict=True):
            if each.state is not None:
                after[each.number] = estimator.update(each.state, each.groups.by_group(tally))
        routing = _whole(self.seen, self.step)
        mask = None if self.steering is None else self.steering.mask
        after += [method.update(state, routing, mask) for method, state in self.methods]
        return Outcome(
            cross_entropy=nats,
            balance=[
                (term.weight_at(self.step.number), found.get(number, torch.zeros_like(nats)))
                for number, term in enumerate(objective.terms)
            ],
            penalty=penalty,
            routing=routing,
            states=after,
        )


def _inputs(step: Step, own: slice, steering: Steering | None) -> Inputs:
    tokens = step.tokens[own]
    return Inputs(tokens[:, :-1], None if steering is None else steering.of(own), tokens[:, 1:])


def _tallies(live: Sequence["_Live"], routing: Routing, own: slice) -> list[Tensor]:
    routing = of_own_scores(routing)
    return [each.groups.tally(routing, own.start) for each in live]


def _added(before: list[Tensor], new: list[Tensor]) -> list[Tensor]:
    return [a + b for a, b in zip(before, new, strict=True)] if before else new


class Distance(NamedTuple):
    """How far a gradient g is from the exact one g*: |g - g*| / |g*|, and the cosine of the two."""

    error: float
    cosine: float


def estimator_error(
    model: MoETransformer,
    objective: Objective,
    step: Step,
    states: Sequence[Any],
) -> Distance:
    """How far the estimator's balance gradient of the routers is from the exact one.

    Args: as for `accumulate_gradients`, which this leaves no trace in.

    Returns:
        Of the gradient of all acting terms in the weights of all routers; nan where the exact one,
        with the f of whole groups, is 0.
    """
    step = replace(step, ranks=replace(step.ranks))  # whose all-reduces are not the step's
    live = [each for each in _live(objective, step, states) if each.weight]
    exact = [
        each._replace(groups=_groups(each.term, objective, step, prefix=None)) for each in live
    ]
    steering = _steering(objective, states, step)
    wholes = _count(model, exact, step, steering)
    looks_back = objective.estimator.looks_back
    tallies = [None for _ in live] if looks_back else _count(model, live, step, steering)
    weights = model.router_weights
    sums = [[torch.zeros_like(each) for each in weights] for _ in range(2)]
    for own in step.passes():
        routing = routing_of(model, _inputs(step, own, steering))
        for into, groups, counts, estimator in (
            (sums[0], live, tallies, objective.estimator),
            (sums[1], exact, wholes, Estimator()),
        ):
            loss = torch.zeros((), device=step.tokens.device)
            for each, tally in zip(groups, counts, strict=True):
                f = estimator.frequency(each.groups, tally, each.state)
                value = _unscaled(objective, each, f, routing, own, step.total)
                loss = loss + each.weight * value
            if live:
                found = torch.autograd.grad(loss, weights, retain_graph=True)
                for one, other in zip(into, found, strict=True):
                    one += other
    g, best = (step.ranks.sum(torch.cat([each.flatten() for each in one]).double()) for one in sums)
    size = best.norm()
    return Distance(float((g - best).norm() / size), float(g @ best / (g.norm() * size)))


def objective_terms(objective: Objective, outcome: Outcome) -> dict[str, float]:
    """What each term of the objective came to, weighted, in words; for a step that went wrong."""
    found = {"cross-entropy": outcome.cross_entropy}
    for term, (weight, value) in zip(objective.terms, outcome.balance, strict=True):
        found[f"balance loss over {term.scope}"] = weight * objective.uniform * value
    found["z-loss"] = objective.z * z_loss(outcome.routing)
    if any(each.penalizes for each in objective.methods):
        found["penalty of the method"] = outcome.penalty
    return {term: value.item() for term, value in found.items()}


def _live(objective: Objective, step: Step, states: Sequence[Any]) -> list[_Live]:
    found = []
    for number, (term, state) in enumerate(zip(objective.terms, states, strict=False)):
        weight = term.weight_at(step.number)
        if not weight and state is None:
            continue
        of_sequence = None
        if term.domain_weights is not None:
            assert step.domain is not None
            of_sequence = torch.tensor(term.domain_weights)[step.domain]
            if step.tokens.is_cuda:  # else the copy would wait for the GPU
                of_sequence = of_sequence.pin_memory()
            of_sequence = of_sequence.to(step.tokens.device, non_blocking=True)
        groups = _groups(term, objective, step, objective.estimator.prefix)
        found.append(_Live(number, term, weight, groups, state, of_sequence))
    return found


def _groups(term: Term, objective: Objective, step: Step, prefix: int | None = None) -> Groups:
    return term.scope.groups(
        step.sequences,
        step.tokens.shape[1] - 1,
        domain=step.domain,
        # anew for each term, so that no term's draws depend on what other terms there are
        generator=torch.Generator().manual_seed(step.seed),
        pass_bsz=prefix,
        device=step.tokens.device,
    )


def _seen_in_time(
    terms: Sequence[Term],
    objective: Objective,
    step: Step,
    views: Sequence[Ranks],
    *,
    together: bool = False,
) -> bool:
    """Whether each pass has seen, by its end, all sequences that its f counts.

    Args:
        views: the ranks to look from.
        together: whether a pass has seen what all ranks did in its round, or this rank alone.
    """
    if not terms or (together and step.device_bsz * views[0].size == step.sequences):
        return True
    for scope in {term.scope for term in terms}:
        member = scope.members(
            step.sequences, domain=step.domain, pass_bsz=objective.estimator.prefix
        )
        for ranks in views:
            seen = torch.zeros(step.sequences, dtype=torch.bool)
            for parts in step.rounds(ranks):
                part = parts[together]
                seen[part] = True
                if (member[part].any(0) & ~seen).any():
                    return False
    return True


def routing_of(model: MoETransformer, inputs: Inputs) -> Routing:
    """Of a pass in training."""
    return model(inputs.tokens, inputs.steering, training=True)[1]


@torch.no_grad()
def _count(
    model: MoETransformer, live: Sequence[_Live], step: Step, steering: Steering | None
) -> list[Tensor]:
    """The tallies of the whole step, over all passes and ranks."""
    tallies: list[Tensor] = []
    for own in step.passes():
        new = _tallies(live, routing_of(model, _inputs(step, own, steering)), own)
        tallies = [a + b for a, b in zip(tallies, new, strict=True)] if tallies else new
    return step.ranks.sum_counts(tallies)


def _unscaled(
    objective: Objective, each: _Live, f: Tensor, routing: Routing, own: slice, total: int
) -> Tensor:
    return balance_loss(
        f[:, own],
        routing.prob_mass if objective.probs == "full" else selected_mass(routing),
        total=total,
        layers=objective.layers,
        weight=None if each.of_sequence is None else each.of_sequence[own],
    )


def _whole(seen: Sequence[Routing], step: Step) -> Routing:
    """The routing of the step, its sequences in the order of the data."""
    routing, passes = join(seen, along="sequences"), step.passes()
    if step.ranks.size > 1:
        return routing._replace(
            **{
                name: step.ranks.whole(getattr(routing, name), passes, step.sequences, axis=1)
                for name in WHOLE
                if getattr(routing, name) is not None
            }
        )
    if step.order is None:
        return routing
    place = torch.cat([torch.arange(each.start, each.stop) for each in passes]).argsort()
    place = place.to(routing.counts.device)
    return Routing(
        *(None if each is None else each.index_select(1, place) for each in routing)  # pyright: ignore
    )

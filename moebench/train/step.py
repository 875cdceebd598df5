"""What one optimizer step is: its objective, its sequences, its inputs and its outcome.

A step is split into physical passes of any size, on any number of ranks. Every term of the
objective is a sum over a pass's sequences divided by a count over the whole step, so the losses
and gradients of passes and ranks simply add.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from moebench.balance import (
    BalanceState,
    Estimator,
    Groups,
    Method,
    Routing,
    Scope,
    Steering,
    Term,
    merged,
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
        terms: the balance losses: over which scope, how strong and when.
        micro_bsz: sequences in a logical micro-batch.
        z: weight of the z-loss.
        estimator: how the f of every term is estimated.
        layers: how layers are combined, see `balance_loss`.
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


class Inputs(NamedTuple):
    """The inputs of a forward pass.

    Attributes:
        tokens: [sequences, seq_len].
        steering: of the selection of experts; None: nothing steers.
        targets: [sequences, tokens], the next tokens of the last inputs; None in a counting pass.
    """

    tokens: Tensor
    steering: Steering | None
    targets: Tensor | None


class Outcome(NamedTuple):
    """The values of a whole step, over all passes and ranks; the gradients are in the parameters.

    Attributes:
        cross_entropy: mean over all target tokens, in nats.
        balance: for each term of the objective, its weight in this step and its unscaled loss; the
            loss is 0 for a term that does not act.
        penalty: of the methods, weighted; None: no method has one.
        routing: of the whole step, detached, without `outputs`.
        states: of each term, then of each method, after this step; None for one without a state.
        norm: of the gradient, if the parameters are updated already; None if they are not.
    """

    cross_entropy: Tensor
    balance: list[tuple[float, Tensor]]
    penalty: Tensor | None
    routing: Routing
    states: list[Any]
    norm: Tensor | None = None


@dataclass(frozen=True)
class Step:
    """The sequences of one optimizer step, and how they are split into passes.

    Attributes:
        tokens: [sequences, tokens + 1] of the whole step; inputs and targets overlap.
        device_bsz: sequences in a physical pass of a rank.
        number: of the step, counted from 1; the weights of terms depend on it.
        domain: [sequences] of the whole step, on the CPU, for terms that need it.
        seed: of the random draws of scopes and routers, derived from (seed, step).
        draws: whether routers draw random numbers, from a key for each sequence.
        ranks: the processes that share the step. They divide each round of consecutive sequences
            among them: a round on all ranks is what a pass is on one.
        order: of the rounds; None: the order of the data.
        forced: the experts of a prescribed router, as `Steering.forced`, for the whole step.
        uncounted: first inputs of each sequence whose next token is no target, as it is with a
            token that names the domain.
    """

    tokens: Tensor
    device_bsz: int
    number: int = 1
    domain: Tensor | None = None
    seed: int = 0
    draws: bool = False
    ranks: Ranks = field(default_factory=Ranks)
    order: Sequence[int] | None = None
    forced: Tensor | None = None
    uncounted: int = 0

    @property
    def sequences(self) -> int:
        return self.tokens.shape[0]

    @property
    def total(self) -> int:
        """Routed tokens of the whole step."""
        return self.sequences * (self.tokens.shape[1] - 1)

    @property
    def targets(self) -> int:
        """Target tokens of the whole step."""
        return self.total - self.sequences * self.uncounted

    def rounds(self, ranks: Ranks) -> list[tuple[slice, slice]]:
        """The sequences of each round, in order: those of one rank, and those of all ranks."""
        length = self.device_bsz * ranks.size
        starts = range(0, self.sequences, length)
        starts = [starts[number] for number in self.order] if self.order is not None else starts
        return [(ranks.share(start, length), slice(start, start + length)) for start in starts]

    def passes(self) -> list[slice]:
        """The sequences of each pass of this rank, in order."""
        return [span for span, _ in self.rounds(self.ranks)]

    def inputs(self, span: slice, steering: Steering | None) -> Inputs:
        """The inputs of the pass over some of the sequences."""
        tokens = self.tokens[span]
        return Inputs(
            tokens[:, :-1],
            None if steering is None else steering.of(span),
            tokens[:, 1 + self.uncounted :],
        )

    def groups(self, scope: Scope, pass_bsz: int | None = None) -> Groups:
        """The balance groups of a scope in this step.

        Args:
            pass_bsz: sequences in a logical pass, where f is a prefix over passes; else None.
        """
        if scope.steady:
            return _steady_groups(scope, self.sequences, pass_bsz, self.tokens.device)
        return scope.groups(
            self.sequences,
            self.tokens.shape[1] - 1,
            domain=self.domain,
            # a new generator for each term: its draws must not depend on the other terms
            generator=torch.Generator().manual_seed(self.seed),
            pass_bsz=pass_bsz,
            device=self.tokens.device,
        )


@lru_cache(maxsize=64)  # else every step would make the same few numbers again
def _steady_groups(
    scope: Scope, sequences: int, pass_bsz: int | None, device: torch.device
) -> Groups:
    """The groups of a scope that are the same in every step."""
    return scope.groups(sequences, 1, pass_bsz=pass_bsz, device=device)


def initial_states(objective: Objective, model: MoETransformer, step: Step) -> list[Any]:
    """The state of each term, then of each method, before the first step; None for one without."""
    estimator, device = objective.estimator, step.tokens.device
    layers, experts = model.router_shape
    of_terms = [
        estimator.begin(layers, step.groups(term.scope).num_groups, experts, device)
        if estimator.carries
        else None
        for term in objective.terms
    ]
    of_methods = [method.begin(layers, experts, device) for method in objective.methods]
    return [*of_terms, *of_methods]


def state_types(objective: Objective) -> list[type | None]:
    """The NamedTuple of each state, in the order of `initial_states`; None for one without."""
    of_terms = [BalanceState if objective.estimator.carries else None for _ in objective.terms]
    return [*of_terms, *(method.State for method in objective.methods)]


def method_states(objective: Objective, states: Sequence[Any]) -> list[tuple[Method, Any]]:
    """Each method with its state, of the states of all terms and methods."""
    return list(zip(objective.methods, states[len(objective.terms) :], strict=True))


def steering_in(step: Step, objective: Objective, states: Sequence[Any]) -> Steering | None:
    """What steers the forward passes of a step; None: nothing does."""
    pairs = method_states(objective, states)
    if not pairs and not step.draws and step.forced is None:
        return None
    steering = merged([method.steering(state) for method, state in pairs])
    if step.draws:
        noise = keys(step.seed, step.sequences, step.tokens.device)
        steering = steering._replace(noise=noise)
    return steering._replace(forced=step.forced)


def steering_after(
    objective: Objective, model: MoETransformer, states: Sequence[Any] | None
) -> Steering | None:
    """What steers the forward passes of an evaluation; None: nothing does.

    Args:
        states: after the last step; None: before the first.
    """
    if not objective.methods:
        return None
    if states is None:
        shape, device = model.router_shape, model.embedding.device
        pairs = [(method, method.begin(*shape, device)) for method in objective.methods]
    else:
        pairs = method_states(objective, states)
    return merged([method.steering(state) for method, state in pairs])


def weighted_terms(objective: Objective, outcome: Outcome) -> dict[str, float]:
    """The weighted value of each term of the objective, by its name, for an error message."""
    values = {"cross-entropy": outcome.cross_entropy}
    for term, (weight, value) in zip(objective.terms, outcome.balance, strict=True):
        values[f"balance loss over {term.name}"] = weight * objective.uniform * value
    if objective.z:
        values["z-loss"] = objective.z * z_loss(outcome.routing)
    if outcome.penalty is not None:
        values["penalty of the method"] = outcome.penalty
    return {name: value.item() for name, value in values.items()}

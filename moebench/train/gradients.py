"""The gradients of one optimizer step, accumulated over passes and summed over ranks."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from moebench.balance import Estimator, Routing, Steering
from moebench.model.transformer import MoETransformer
from moebench.train.share import ActiveTerm, ArmStep, active_terms, added, tallies_of
from moebench.train.step import Inputs, Objective, Outcome, Step, initial_states, steering_in

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]
Forward = Callable[[list[Inputs]], Sequence[tuple[Tensor | None, Routing]]]


def forward_of(model: MoETransformer, wrap: Wrap | None = None) -> Forward:
    """A function from the inputs of one arm to its summed nats and its routing.

    The nats are None without targets.

    Args:
        wrap: applied to the function, as `torch.compile` is. The function includes the
            cross-entropy: with a large vocabulary, compiling that saves as much as all the rest.
    """

    def call(
        tokens: Tensor, steering: Steering | None, targets: Tensor | None
    ) -> tuple[Tensor | None, Routing]:
        logits, routing = model(tokens, steering, training=True)
        return None if targets is None else summed_nats(logits, targets), routing

    wrapped = call if wrap is None else wrap(call)
    return lambda inputs: [wrapped(*inputs[0])]


def summed_nats(logits: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy of all target tokens, which follow the last inputs, summed."""
    logits = logits[:, logits.shape[1] - targets.shape[1] :]
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


def routing_of(model: MoETransformer, inputs: Inputs) -> Routing:
    """The routing of a training pass."""
    return model(inputs.tokens, inputs.steering, training=True)[1]


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
        forward: of the model; None: `forward_of(model)`.
    """
    arm_step = ArmStep(objective, step, states or initial_states(objective, model, step))
    arm_step.penalize(model)
    [outcome] = accumulate_together(forward or forward_of(model), [arm_step])
    step.ranks.sum_gradients(model)
    return outcome


def accumulate_together(forward: Forward, arm_steps: Sequence[ArmStep]) -> list[Outcome]:
    """Run the passes of several arms of equal shape together, with one backward for each pass.

    Args:
        forward: from the inputs of all arms to the nats and routing of each.
        arm_steps: of equally many sequences in equally large passes.
    """
    passes = arm_steps[0].step.passes()
    if any(arm_step.counting for arm_step in arm_steps):
        with torch.no_grad():
            for span in passes:
                inputs = [arm_step.inputs(span)._replace(targets=None) for arm_step in arm_steps]
                for arm_step, (_, routing) in zip(arm_steps, forward(inputs), strict=True):
                    arm_step.count(routing, span)
        for arm_step in arm_steps:
            arm_step.share_counts()
    for span in passes:
        outputs = forward([arm_step.inputs(span) for arm_step in arm_steps])
        losses = [
            arm_step.loss(nats, routing, span)
            for arm_step, (nats, routing) in zip(arm_steps, outputs, strict=True)
        ]
        reduce(torch.add, losses).backward()
    return [arm_step.outcome() for arm_step in arm_steps]


class Distance(NamedTuple):
    """How far a gradient g is from the exact one g*: |g - g*| / |g*|, and the cosine of the two."""

    error: float
    cosine: float


def estimator_error(
    model: MoETransformer, objective: Objective, step: Step, states: Sequence[Any]
) -> Distance:
    """How far the estimator's balance gradient of the routers is from the exact one.

    It leaves no trace in gradients or states.

    Args: as for `accumulate_gradients`.

    Returns:
        The distance in the weights of all routers, for all acting terms together. It is nan where
        the exact gradient, with the f of whole groups, is 0.
    """
    # these all-reduces are not the step's
    step = replace(step, ranks=replace(step.ranks, on_gpu=[]))
    steering = steering_in(step, objective, states)
    terms = [active for active in active_terms(objective, step, states) if active.weight]
    exact = [active._replace(groups=step.groups(active.term.scope)) for active in terms]
    exact_tallies = _count(model, exact, step, steering)
    tallies: Sequence[Tensor | None] = (
        [None for _ in terms]
        if objective.estimator.looks_back
        else _count(model, terms, step, steering)
    )
    weights = model.router_weights
    estimated, best = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    for span in step.passes():
        routing = routing_of(model, step.inputs(span, steering))
        for sums, actives, counts, asked in (
            (estimated, terms, tallies, objective),
            (best, exact, exact_tallies, replace(objective, estimator=Estimator())),
        ):
            loss = torch.zeros((), device=step.tokens.device)
            for active, tally in zip(actives, counts, strict=True):
                value = active.loss(asked, tally, routing, span, step.total)
                loss = loss + active.weight * value
            if actives:
                gradients = torch.autograd.grad(loss, weights, retain_graph=True)
                for total, gradient in zip(sums, gradients, strict=True):
                    total += gradient
    g, true = (
        step.ranks.sum(torch.cat([part.flatten() for part in sums]).double())
        for sums in (estimated, best)
    )
    norm = true.norm()
    return Distance(float((g - true).norm() / norm), float(g @ true / (g.norm() * norm)))


@torch.no_grad()
def _count(
    model: MoETransformer, terms: Sequence[ActiveTerm], step: Step, steering: Steering | None
) -> list[Tensor]:
    """The tallies of the whole step, over all passes and ranks."""
    tallies: list[Tensor] = []
    for span in step.passes():
        routing = routing_of(model, step.inputs(span, steering))
        tallies = added(tallies, tallies_of(terms, routing, span))
    return step.ranks.sum_counts(tallies)

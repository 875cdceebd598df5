"""How strongly the cross-entropy and each balance term pull at the routers, and whether together.

A force is the gradient, in the weights of all routers, of one weighted term of the objective.
Forces are computed at evaluations, on the batch of the step before. They leave no trace in
gradients, in the states of terms, or in any source of randomness.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from moebench.balance import Method, Steering
from moebench.model.transformer import MoETransformer
from moebench.train.gradients import accumulate_gradients
from moebench.train.ranks import Ranks
from moebench.train.step import Objective, Step, steering_after


def forces(
    model: MoETransformer,
    objective: Objective,
    step: Step,
    states: Sequence[Any],
) -> dict[str, float]:
    """Norms of the routers' gradients by term, and the cosines of balance and cross-entropy.

    Args:
        step: whose sequences are used; this rank computes all of them itself.
        states: of each term and method of the objective.

    Returns:
        `forces/cross_entropy`; where balance terms act, `forces/balance` (of all together) and
        `forces/cosine` (of that and the cross-entropy); where several act, also each of these for
        each term, as `forces/balance/<label of the term>`.
    """
    step = replace(step, ranks=Ranks())
    if not model.router_weights:
        return {}
    # experts are selected as in the step, but what selects them adds no penalty
    held = _Held(steering_after(objective, model, states or None) or Steering())
    plain = replace(objective, terms=(), z=0.0, methods=(held,) if objective.methods else ())
    method_states = [None for _ in plain.methods]
    task = _router_gradient(model, plain, step, ())
    row = {"forces/cross_entropy": float(task.norm())}
    pulls: list[tuple[str, Tensor]] = []
    for number, term in enumerate(objective.terms):
        if term.weight_at(step.number):
            alone = replace(plain, terms=(term,))
            gradient = _router_gradient(model, alone, step, (states[number], *method_states))
            pulls.append((f"/{term.name}", gradient - task))
    if pulls:
        total = torch.stack([pull for _, pull in pulls]).sum(0)
        for end, pull in [("", total), *(pulls if len(pulls) > 1 else [])]:
            row[f"forces/balance{end}"] = float(pull.norm())
            row[f"forces/cosine{end}"] = float(task @ pull / (task.norm() * pull.norm()))
    return row


@dataclass(frozen=True)
class _Held(Method):
    """The steering of all methods in one step, without their penalties."""

    held: Steering

    def steering(self, state: Any) -> Steering:
        return self.held


def _router_gradient(
    model: MoETransformer, objective: Objective, step: Step, states: Sequence[Any]
) -> Tensor:
    """The gradient of an objective in all router weights, in fp64, as one vector."""
    parameters = dict(model.named_parameters())
    before = {name: (p.grad, p.requires_grad) for name, p in parameters.items()}
    routers = [name for name in parameters if name.endswith("router.weight")]
    try:
        for name, parameter in parameters.items():
            parameter.grad = None
            parameter.requires_grad_(name in routers)
        accumulate_gradients(model, objective, step, states)
        return torch.cat([_gradient(parameters[name]).flatten().double() for name in routers])
    finally:
        for name, parameter in parameters.items():
            parameter.grad, requires_grad = before[name]
            parameter.requires_grad_(requires_grad)


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad

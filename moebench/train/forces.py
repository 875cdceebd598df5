"""How hard the cross-entropy and each balance term pull at the routers, and whether together.

A force is the gradient, in the weights of all routers, of one term of the objective with its
weight. Forces are taken at evaluations, on the batch of the step before, and leave no trace:
neither in gradients, nor in the state of terms or of any source of randomness.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from moebench.balance import Method, Steering
from moebench.model.transformer import MoETransformer
from moebench.train.ranks import Ranks
from moebench.train.step import Objective, Step, accumulate_gradients, steering_after


def forces(
    model: MoETransformer,
    objective: Objective,
    step: Step,
    states: Sequence[Any],
) -> dict[str, float]:
    """Norms of the routers' gradients, and the cosines of each balance term's with the rest's.

    Args:
        step: a step's sequences; however many ranks share it, this one goes through all.
        states: of each term and method of the objective.

    Returns:
        `forces/cross_entropy`; where balance terms act, `forces/balance` (of all together) and
        `forces/cosine` (of that and the cross-entropy); and where several do, each of these with
        `/<scope>` behind it.
    """
    step = replace(step, ranks=Ranks())
    if not model.router_weights:
        return {}
    # experts are selected as in the step, and what selects them adds nothing
    held = _Held(steering_after(objective, model, states or None) or Steering())
    plain = replace(objective, terms=(), z=0.0, methods=(held,) if objective.methods else ())
    nothing = [None for _ in plain.methods]
    task = _router_gradient(model, plain, step, ())
    found = {"forces/cross_entropy": float(task.norm())}
    acting = [number for number, term in enumerate(objective.terms) if term.weight_at(step.number)]
    pulls = {
        number: _router_gradient(
            model,
            replace(plain, terms=(objective.terms[number],)),
            step,
            (states[number], *nothing),
        )
        - task
        for number in acting
    }
    if pulls:
        named = {"": torch.stack([*pulls.values()]).sum(0)}
        if len(pulls) > 1:
            named |= {f"/{objective.terms[each].scope}": pull for each, pull in pulls.items()}
        for end, pull in named.items():
            found[f"forces/balance{end}"] = float(pull.norm())
            found[f"forces/cosine{end}"] = float(task @ pull / (task.norm() * pull.norm()))
    return found


@dataclass(frozen=True)
class _Held(Method):
    """Methods as they steer one step, without their penalties."""

    held: Steering

    def steering(self, state: Any) -> Steering:
        return self.held


def _router_gradient(
    model: MoETransformer, objective: Objective, step: Step, states: Sequence[Any]
) -> Tensor:
    """The gradient of an objective in all router weights, in fp64, as one vector."""
    parameters = dict(model.named_parameters())
    kept = {name: each.grad for name, each in parameters.items()}
    asked = {name: each.requires_grad for name, each in parameters.items()}
    routers = [name for name in parameters if name.endswith("router.weight")]
    try:
        for name, each in parameters.items():
            each.grad = None
            each.requires_grad_(name in routers)
        accumulate_gradients(model, objective, step, states)
        return torch.cat([_gradient(parameters[name]).flatten().double() for name in routers])
    finally:
        for name, each in parameters.items():
            each.grad = kept[name]
            each.requires_grad_(asked[name])


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad

"""Runs of equal shape in one process: one forward and one backward of a stacked model for all.

Parameters are stacked along a leading arm axis, and `vmap` maps the plain module over it. A run's
own model and optimizer see views of the stack. All else that a run does (its loss, its
checkpoints) is therefore the code of a single run on its own numbers, and a run that ends or fails
leaves the others as they are. On a GPU the updates of all runs are launched together.

A stacked run equals the same run alone but for rounding, and to the bit where the bits of a product
do not depend on its shape (`products.py`).
"""

import copy
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from moebench.balance import Routing, Steering
from moebench.model.transformer import MoETransformer
from moebench.train.gradients import Forward, Wrap, accumulate_together, forward_of, summed_nats
from moebench.train.loop import TrainingRun
from moebench.train.share import ArmStep
from moebench.train.step import Inputs, Outcome, Step, initial_states
from moebench.train.update import apply_together


class GradientRequest(NamedTuple):
    """A run's request for the gradients of a step.

    Attributes:
        wrap: applied to the forward, as `torch.compile` is; the same for all runs of a stack.
    """

    run: TrainingRun
    step: Step
    wrap: Wrap | None = None


GradientRequests = Generator[GradientRequest | None, Outcome]


class Stack:
    """Models of equal shape as one; their parameters become views of its own.

    Args:
        models: whose parameters are stacked; a single one is used as it is.
        wrap: applied to the forward, as `torch.compile` is.
    """

    def __init__(self, models: Sequence[MoETransformer], wrap: Wrap | None = None) -> None:
        self.models = tuple(models)
        self.parameters: dict[str, Tensor] = {}
        if len(models) == 1:
            for parameter in models[0].parameters():
                parameter.data = parameter.data.clone()  # a view would keep an old stack alive
            self.forward = forward_of(models[0], wrap)
            return
        self.parameters, _ = stack_module_state(list(models))  # pyright: ignore
        for arm, model in enumerate(self.models):
            for name, parameter in model.named_parameters():
                parameter.data = self.parameters[name].data[arm]
        self.forward = _stacked_forward(models[0], self.parameters, len(models), wrap)

    def gradients(self, requests: Sequence[GradientRequest]) -> list[Outcome]:
        """What `accumulate_gradients` returns for each run; the gradients are in its own model."""
        arm_steps = []
        for (run, step, _), model in zip(requests, self.models, strict=True):
            states = run.state.balance or initial_states(run.objective, model, step)
            arm_steps.append(ArmStep(run.objective, step, states))
            arm_steps[-1].penalize(model)
        for parameter in self.parameters.values():
            parameter.grad = None
        outcomes = accumulate_together(self.forward, arm_steps)
        self.distribute()
        if not self.parameters:
            requests[0].step.ranks.sum_gradients(self.models[0])
        return outcomes

    def update(
        self, requests: Sequence[GradientRequest], outcomes: Sequence[Outcome]
    ) -> list[Outcome]:
        """Update all runs together where their checks are deferred, as on a GPU.

        Returns:
            The outcomes, with the norm of the gradient for runs that are updated.
        """
        if len(requests) == 1 or not all(run.finite.deferred for run, _, _ in requests):
            return list(outcomes)
        pairs = list(zip(requests, outcomes, strict=True))
        norms = apply_together([run.update(step, outcome) for (run, step, _), outcome in pairs])
        return [
            outcome._replace(norm=norm) for (_, outcome), norm in zip(pairs, norms, strict=True)
        ]

    def distribute(self) -> None:
        """Add to each model's gradients its part of the stack's."""
        for name, stacked in self.parameters.items():
            if stacked.grad is not None:
                for model, part in zip(self.models, stacked.grad.unbind(), strict=True):
                    parameter = model.get_parameter(name)
                    # a penalty on weights may have left a gradient
                    parameter.grad = part if parameter.grad is None else parameter.grad + part


def _stacked_forward(
    model: MoETransformer, parameters: dict[str, Tensor], arms: int, wrap: Wrap | None
) -> Forward:
    """A function from the inputs of all arms to the summed nats and routing of each.

    It refers to no stack and no model: they would keep the memory of runs that have ended.
    """
    plain = copy.deepcopy(model).to("meta")

    def of_arm(
        parameters: dict[str, Tensor], tokens: Tensor, steering: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        inputs = tokens, Steering(**steering) if steering else None
        logits, routing = functional_call(plain, parameters, inputs, {"training": True})
        return logits, {name: x for name, x in routing._asdict().items() if x is not None}

    of_all = vmap(of_arm)

    def call(
        parameters: dict[str, Tensor],
        tokens: Tensor,
        steering: dict[str, Tensor],
        targets: list[Tensor] | None,
    ) -> list[tuple[Tensor | None, Routing]]:
        stacked_logits, fields = of_all(parameters, tokens, steering)
        # unbind: its backward is one stack, where that of indexing adds up one tensor for each arm
        parts = {name: value.unbind() for name, value in fields.items()}
        nats = None if targets is None else _nats_of_arms(stacked_logits, targets)
        return [
            (
                None if nats is None else nats[arm],
                Routing(**{name: part[arm] for name, part in parts.items()}),
            )
            for arm in range(arms)
        ]

    wrapped = call if wrap is None else wrap(call)

    def forward(inputs: list[Inputs]) -> list[tuple[Tensor | None, Routing]]:
        tokens = torch.stack([of_run.tokens for of_run in inputs])
        targets = [of_run.targets for of_run in inputs if of_run.targets is not None]
        return wrapped(parameters, tokens, _stacked_steering(inputs), targets or None)

    return forward


def _nats_of_arms(
    logits: Float[Tensor, "arms sequences tokens vocab"], targets: Sequence[Tensor]
) -> Sequence[Tensor]:
    """`summed_nats` of each arm; on a GPU by the same few launches for all of them."""
    if not logits.is_cuda:
        return [summed_nats(*of_arm) for of_arm in zip(logits.unbind(), targets, strict=True)]
    counted = torch.stack(list(targets))
    logits = logits[:, :, logits.shape[2] - counted.shape[2] :]
    nats = F.cross_entropy(logits.flatten(0, 2), counted.flatten(), reduction="none")
    return nats.view(len(targets), -1).sum(1).unbind()


def _stacked_steering(inputs: Sequence[Inputs]) -> dict[str, Tensor]:
    """The steering of all arms of a stack, which all have the same fields or none."""
    steering = [of_run.steering for of_run in inputs if of_run.steering is not None]
    return {
        name: torch.stack([getattr(of_run, name) for of_run in steering])
        for name in Steering._fields
        if steering and getattr(steering[0], name) is not None
    }


def train_in_lockstep(runs: Sequence[GradientRequests]) -> list[Exception | None]:
    """Train several runs in lockstep until each finishes.

    Args:
        runs: each requests the gradients of one step after another, and is sent their Outcome. A
            run that raises leaves the stack, as one that returns does. One that yields None leaves
            it too, and goes on when the others have made the same step.

    Returns:
        How each run failed; None for one that did not.
    """
    errors: list[Exception | None] = [None for _ in runs]
    requests: dict[int, GradientRequest] = {}
    waiting: list[int] = []

    def resume(number: int, advance: Callable[[], GradientRequest | None]) -> None:
        requests.pop(number, None)
        try:
            request = advance()
            if request is None:
                waiting.append(number)
            else:
                requests[number] = request
        except StopIteration:
            pass
        except Exception as error:
            errors[number] = error

    stack: Stack | None = None
    try:
        for number, run in enumerate(runs):
            resume(number, partial(next, run))
        while requests or waiting:
            for number in waiting[:]:
                waiting.remove(number)
                resume(number, partial(next, runs[number]))
            if not requests:
                continue
            numbers, pending = list(requests), list(requests.values())
            models = tuple(request.run.state.model for request in pending)
            if stack is None or stack.models != models:
                stack = Stack(models, pending[0].wrap)
            try:
                outcomes = stack.update(pending, stack.gradients(pending))
            except Exception as error:  # it concerns all of them, as when memory runs out
                for number in numbers:
                    resume(number, partial(runs[number].throw, error))
                continue
            for number, outcome in zip(numbers, outcomes, strict=True):
                resume(number, partial(runs[number].send, outcome))
    except BaseException as stop:  # Ctrl-C: every run ends, whichever was running
        for run in runs:
            with suppress(BaseException):
                run.throw(stop)
        raise
    return errors

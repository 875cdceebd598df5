"""Arms of equal shape in one process: one forward and one backward of a stacked model for all.

Parameters are stacked along a leading arm axis, and `vmap` maps the plain module over it. An arm's
own model and optimizer see views of the stack, so that whatever else an arm does (its loss, its
clipping, its update, its checkpoints) is the code of a single run on its own numbers, and an arm
that ends or dies leaves the others as they are.
"""

import copy
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from moebench.balance import Routing, Steering
from moebench.model.transformer import MoETransformer
from moebench.train.loop import Arm
from moebench.train.step import (
    Inputs,
    Outcome,
    Share,
    Step,
    Wrap,
    accumulate_together,
    begin_states,
    forward_of,
    summed_nats,
)


class Work(NamedTuple):
    """A step of an arm whose gradients are wanted.

    Attributes:
        wrap: what the forward is wrapped in, as `torch.compile`; the same for all of a stack.
    """

    arm: Arm
    step: Step
    wrap: Wrap | None = None


class Stack:
    """Models of equal shape as one; their parameters become views of its own.

    Args:
        models: whose parameters are stacked; one alone stays what it is.
        wrap: what the forward is wrapped in, as `torch.compile`.
    """

    def __init__(self, models: Sequence[MoETransformer], wrap: Wrap | None = None) -> None:
        self.models = tuple(models)
        self.parameters: dict[str, Tensor] = {}
        if len(models) == 1:
            for parameter in models[0].parameters():
                parameter.data = parameter.data.clone()  # else it would keep an old stack alive
            self.forward = forward_of(models[0], wrap)
            return
        self.parameters, _ = stack_module_state(list(models))  # pyright: ignore
        for arm, model in enumerate(self.models):
            for name, parameter in model.named_parameters():
                parameter.data = self.parameters[name].data[arm]
        plain = copy.deepcopy(models[0]).to("meta")

        def of_arm(
            parameters: dict[str, Tensor], tokens: Tensor, steering: dict[str, Tensor]
        ) -> tuple[Tensor, dict[str, Tensor]]:
            inputs = tokens, Steering(**steering) if steering else None
            logits, routing = functional_call(plain, parameters, inputs, {"training": True})
            said = {name: each for name, each in routing._asdict().items() if each is not None}
            return logits, said

        # neither this nor the models below, else what an arm has left would hold its memory
        stacked, arms, of_all = self.parameters, len(models), vmap(of_arm)

        def call(
            parameters: dict[str, Tensor],
            tokens: Tensor,
            steering: dict[str, Tensor],
            targets: list[Tensor] | None,
        ) -> list[tuple[Tensor | None, Routing]]:
            logits, said = of_all(parameters, tokens, steering)
            # unbind, whose backward is one stack, where indexing would add up one for each arm
            parts = {name: each.unbind() for name, each in said.items()}
            each_logits = logits.unbind()
            return [
                (
                    None if targets is None else summed_nats(each_logits[arm], targets[arm]),
                    Routing(**{name: part[arm] for name, part in parts.items()}),
                )
                for arm in range(arms)
            ]

        wrapped = call if wrap is None else wrap(call)

        def forward(inputs: list[Inputs]) -> list[tuple[Tensor | None, Routing]]:
            tokens = torch.stack([each.tokens for each in inputs])
            targets = [each.targets for each in inputs if each.targets is not None]
            return wrapped(stacked, tokens, _stacked(inputs), targets or None)

        self.forward = forward

    def gradients(self, works: Sequence[Work]) -> list[Outcome]:
        """What `accumulate_gradients` gives for each arm; gradients lie in its own model."""
        shares = [
            Share(
                arm.objective,
                step,
                arm.state.balance or begin_states(arm.objective, arm.state.model, step),
            )
            for arm, step, _ in works
        ]
        for share, model in zip(shares, self.models, strict=True):
            share.penalize(model)
        for each in self.parameters.values():
            each.grad = None
        outcomes = accumulate_together(self.forward, shares)
        self.hand_out()
        if not self.parameters:
            works[0].step.ranks.sum_gradients(self.models[0])
        return outcomes

    def hand_out(self) -> None:
        """Let each model's gradients be its part of the stack's."""
        for name, each in self.parameters.items():
            if each.grad is not None:
                for model, part in zip(self.models, each.grad.unbind(), strict=True):
                    own = model.get_parameter(name)  # which a penalty of weights may have reached
                    own.grad = part if own.grad is None else own.grad + part


def _stacked(inputs: Sequence[Inputs]) -> dict[str, Tensor]:
    """What steers the arms of a stack, which are steered alike or not at all."""
    steering = [each.steering for each in inputs if each.steering is not None]
    return {
        name: torch.stack([getattr(each, name) for each in steering])
        for name in Steering._fields
        if steering and getattr(steering[0], name) is not None
    }


Way = Generator[Work, Outcome]


def drive(ways: Sequence[Way]) -> list[Exception | None]:
    """Go the ways of several arms at once, each to its own end.

    Args:
        ways: each asks for the gradients of its steps, one after another, and is answered with
            their Outcome. One that raises leaves the stack, as one that returns does.

    Returns:
        Of each way, how it failed; None where it did not.
    """
    failed: list[Exception | None] = [None for _ in ways]
    asked: dict[int, Work] = {}

    def go_on(number: int, act: Callable[[], Work]) -> None:
        asked.pop(number, None)
        try:
            asked[number] = act()
        except StopIteration:
            pass
        except Exception as error:
            failed[number] = error

    stack: Stack | None = None
    try:
        for number, way in enumerate(ways):
            go_on(number, partial(next, way))
        while asked:
            numbers, works = list(asked), list(asked.values())
            models = tuple(work.arm.state.model for work in works)
            if stack is None or stack.models != models:
                stack = Stack(models, works[0].wrap)
            try:
                outcomes = stack.gradients(works)
            except Exception as error:  # of all of them, as memory that runs out
                for number in numbers:
                    go_on(number, partial(ways[number].throw, error))
                continue
            for number, outcome in zip(numbers, outcomes, strict=True):
                go_on(number, partial(ways[number].send, outcome))
    except BaseException as stop:  # Ctrl-C, whoever's turn it was
        for way in ways:
            with suppress(BaseException):
                way.throw(stop)
        raise
    return failed

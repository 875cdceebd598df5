"""Arms of equal shape side by side in one process: more groups of the same products.

The parameters of all arms lie side by side, [arms, ...] each, and a `vmap` over the forward of the
plain module computes every arm in the same kernels. One backward outside it, from the sum of their
losses, gives each arm the gradient that it has alone, since no arm's loss depends on another's
parameters. Each arm keeps a model, whose parameters are views of its own slice, with an optimizer,
clipping, evaluations and checkpoints of its own: nothing beyond the forward knows of the stack.

What may differ between the arms of a stack is in `moebench.config.stacking`.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from moebench.balance import Routing
from moebench.errors import TrainingError
from moebench.model.transformer import MoETransformer
from moebench.train.loop import Arm, Event
from moebench.train.step import Share, accumulate_together


class Stack:
    """Models of equal shape, run as one.

    Args:
        models: whose parameters become views of stacked ones, with their values kept.
    """

    def __init__(self, models: Sequence[MoETransformer]) -> None:
        self.models = list(models)
        self.plain = copy.deepcopy(models[0]).to("meta")  # the code alone
        self.parameters: dict[str, Tensor] = {}
        for name, _ in models[0].named_parameters():
            own = [each.get_parameter(name) for each in models]
            self.parameters[name] = torch.stack([each.detach() for each in own]).requires_grad_()
            for each, part in zip(own, self.parameters[name].detach(), strict=True):
                each.data = part

    def __call__(self, tokens: Sequence[Tensor]) -> list[tuple[Tensor, Routing]]:
        """Logits and routing of each arm for its own tokens [sequences, seq_len]."""
        there: list[bool] = []

        def one(parameters: dict[str, Tensor], tokens: Tensor) -> tuple[Tensor, ...]:
            logits, routing = functional_call(self.plain, parameters, (tokens,))
            there[:] = [each is not None for each in routing]
            return logits, *(each for each in routing if each is not None)

        logits, *fields = vmap(one)(self.parameters, torch.stack(list(tokens)))
        found = []
        for arm in range(len(self.models)):
            own = iter(fields)
            routing = Routing(*(next(own)[arm] if each else None for each in there))  # pyright: ignore
            found.append((logits[arm], routing))
        return found

    def clear(self) -> None:
        """Forget the gradients."""
        for each in self.parameters.values():
            each.grad = None

    def hand_out(self) -> None:
        """Give each model the gradient of its own parameters."""
        for name, stacked in self.parameters.items():
            if stacked.grad is None:
                continue
            for model, own in zip(self.models, stacked.grad, strict=True):
                model.get_parameter(name).grad = own


class Told(NamedTuple):
    """What an arm of a stack has to say: an event, or why it goes on no more."""

    arm: int
    event: Event | None
    error: TrainingError | None = None


def train_together(arms: Sequence[Arm]) -> Iterator[list[Told]]:
    """Train arms side by side to the end of each, in place; yields what each said of a step.

    An arm whose loss or gradient is not finite is frozen as it was before the step, and leaves the
    others as they would be without it; so is one that is done.
    """
    stack = Stack([each.state.model for each in arms])
    live = [number for number, each in enumerate(arms) if not each.done]
    yield [Told(each, arms[each].begin()) for each in live if arms[each].state.step == 0]
    while live:
        shares = []
        for number in live:
            step = arms[number].next_step()
            states = arms[number].state.balance
            assert states is not None
            shares.append(Share(arms[number].objective, step, states))
        stack.clear()

        def forward(tokens: list[Tensor], live: Sequence[int] = tuple(live)) -> list:
            filled = dict(zip(live, tokens, strict=True))
            found = stack([filled.get(each, tokens[0]) for each in range(len(arms))])
            return [found[each] for each in live]

        outcomes = accumulate_together(forward, shares)
        stack.hand_out()
        told = []
        for number, share, outcome in zip(live, shares, outcomes, strict=True):
            try:
                told.append(Told(number, arms[number].finish(share.step, outcome)))
            except TrainingError as error:
                told.append(Told(number, None, error))
        live = [each.arm for each in told if not each.error and not arms[each.arm].done]
        yield told

"""An average of late weights, which is evaluated in place of the last ones (`optim.ema`).

After step t of T, average <- average + w (weights - average), with w the larger of 1 / t and
1 / (optim.ema T). It is the plain mean of all steps until a share `optim.ema` of them is done, and
an exponential average over about so many steps from then on. No initial weight stays in it.

Source: Sandler et al., arXiv 2301.02312: such an average is near to a rate that decays to 0.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from moebench.config.schema import ExperimentConfig


def begin(model: nn.Module, config: ExperimentConfig) -> dict[str, Tensor] | None:
    """The average before the first step, by the name of the parameter; None without `optim.ema`."""
    if not config.optim.ema:
        return None
    return {name: value.detach().clone() for name, value in model.named_parameters()}


@torch.no_grad()
def move(
    average: Mapping[str, Tensor] | None, model: nn.Module, config: ExperimentConfig, step: int
) -> None:
    """Move an average, if there is one, to the weights after a step, counted from 1."""
    if average is None:
        return
    weight = max(1 / step, 1 / max(1.0, config.optim.ema * config.train.steps))
    parameters = dict(model.named_parameters())
    names = list(average)
    torch._foreach_lerp_(  # pyright: ignore
        [average[name] for name in names], [parameters[name].detach() for name in names], weight
    )


@contextmanager
def averaged(model: nn.Module, average: Mapping[str, Tensor] | None) -> Iterator[None]:
    """The model with the average as its weights, if there is one; its own weights come back."""
    own = {name: value.data for name, value in model.named_parameters()}
    try:
        for name, parameter in model.named_parameters():
            if average is not None:
                parameter.data = average[name]
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.data = own[name]

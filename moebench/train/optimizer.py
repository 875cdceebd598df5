"""AdamW with a linear warm-up and a cosine decay."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from moebench.config.schema import OptimConfig


@dataclass
class ParameterGroup:
    """Parameters that decay at one rate."""

    params: list[nn.Parameter]
    weight_decay: float


class AdamW:
    """Fused AdamW, step for step equal to `torch.optim.AdamW(..., fused=True)`.

    torch's class imports torch's compiler, which takes seconds at the start of every run; its
    function does not.

    Attributes:
        lr: the learning rate of the next step.
        state: of each parameter: `step`, `exp_avg` and `exp_avg_sq`; empty before its first step.
        found_inf: a tensor that is 1 where the next step must change nothing; None: never.

    Source: Loshchilov and Hutter, arXiv 1711.05101, Algorithm 2.
    """

    def __init__(
        self,
        groups: Sequence[ParameterGroup],
        lr: float,
        betas: tuple[float, float],
        eps: float = 1e-8,
    ) -> None:
        self.groups, self.lr, self.betas, self.eps = groups, lr, betas, eps
        self.state: dict[Tensor, dict[str, Tensor]] = {
            parameter: {} for group in groups for parameter in group.params
        }
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self) -> None:
        """Update the parameters that have a gradient."""
        for group in self.groups:
            params: list[Tensor] = [param for param in group.params if param.grad is not None]
            if not params:
                continue
            states = [self.state[param] or self._begin(param) for param in params]
            adamw(
                params,
                grads=[param.grad for param in params if param.grad is not None],
                exp_avgs=[state["exp_avg"] for state in states],
                exp_avg_sqs=[state["exp_avg_sq"] for state in states],
                max_exp_avg_sqs=[],
                state_steps=[state["step"] for state in states],
                fused=True,
                found_inf=self.found_inf,
                amsgrad=False,
                beta1=self.betas[0],
                beta2=self.betas[1],
                lr=self.lr,
                weight_decay=group.weight_decay,
                eps=self.eps,
                maximize=False,
            )

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self.state:
            parameter.grad = None

    def _begin(self, parameter: Tensor) -> dict[str, Tensor]:
        self.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
        return self.state[parameter]


def make_optimizer(model: nn.Module, config: OptimConfig) -> AdamW:
    """AdamW with weight decay on matrices, not on gains."""
    matrices = [param for param in model.parameters() if param.ndim > 1]
    gains = [param for param in model.parameters() if param.ndim <= 1]
    groups = ParameterGroup(matrices, config.weight_decay), ParameterGroup(gains, 0.0)
    betas = config.beta1, config.beta2
    return AdamW(groups, config.lr, betas)


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """The rate of a step, 1 to `steps`: linear warm-up, then a half cosine down to `final`."""
    warmup = config.warmup * steps
    if step <= warmup:
        return config.lr * step / warmup
    done = (step - warmup) / (steps - warmup)
    return config.lr * (config.final + (1 - config.final) * (1 + math.cos(math.pi * done)) / 2)

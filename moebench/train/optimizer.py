"""AdamW with a linear warm-up and a cosine decay."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moebench.config.schema import OptimConfig


@dataclass
class ParameterGroup:
    """Parameters that decay at one rate, and learn at a multiple of the optimizer's."""

    params: list[nn.Parameter]
    weight_decay: float
    lr_factor: float = 1.0


class AdamW:
    """Fused AdamW, step for step equal to `torch.optim.AdamW(..., fused=True)`.

    torch's class imports torch's compiler, which takes seconds at the start of every run; its
    kernel does not.

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

    def step(self) -> None:
        """Update the parameters that have a gradient."""
        step_together([self])

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


@torch.no_grad()
def step_together(optimizers: Sequence[AdamW]) -> None:
    """The step of several optimizers, whose steps are counted by one launch."""
    updated = [
        (optimizer, group, [param for param in group.params if param.grad is not None])
        for optimizer in optimizers
        for group in optimizer.groups
    ]
    updated = [each for each in updated if each[2]]
    counts: list[Tensor] = []
    skips: list[tuple[Tensor, Tensor]] = []
    for optimizer, _, params in updated:
        own = [(optimizer.state[param] or optimizer._begin(param))["step"] for param in params]
        counts += own
        if optimizer.found_inf is not None:
            skips += [(count, optimizer.found_inf) for count in own]
    if counts:
        torch._foreach_add_(counts, 1)  # pyright: ignore
    for optimizer, group, params in updated:
        states = [optimizer.state[param] for param in params]
        torch._fused_adamw_(  # pyright: ignore
            list[Tensor](params),
            [param.grad for param in params if param.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            lr=optimizer.lr * group.lr_factor,
            beta1=optimizer.betas[0],
            beta2=optimizer.betas[1],
            weight_decay=group.weight_decay,
            eps=optimizer.eps,
            amsgrad=False,
            maximize=False,
            grad_scale=None,
            found_inf=optimizer.found_inf,
        )
    if skips:  # a step that was skipped does not count
        torch._foreach_sub_(*map(list, zip(*skips, strict=True)))  # pyright: ignore


def make_optimizer(model: nn.Module, config: OptimConfig) -> AdamW:
    """AdamW with weight decay on matrices, not on gains; routers may learn at their own rate."""
    apart = config.router_lr != 1
    routers = [p for name, p in model.named_parameters() if apart and ".router." in name]
    own = {id(param) for param in routers}
    others = [param for param in model.parameters() if id(param) not in own]
    groups = []
    for params, factor in ((others, 1.0), (routers, config.router_lr)):
        if params:
            matrices = [param for param in params if param.ndim > 1]
            gains = [param for param in params if param.ndim <= 1]
            groups.append(ParameterGroup(matrices, config.weight_decay, factor))
            groups.append(ParameterGroup(gains, 0.0, factor))
    betas = config.beta1, config.beta2
    return AdamW(groups, config.lr, betas)


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """The rate of a step, 1 to `steps`: linear warm-up, then a half cosine down to `final`."""
    warmup = config.warmup * steps
    if step <= warmup:
        return config.lr * step / warmup
    done = (step - warmup) / (steps - warmup)
    return config.lr * (config.final + (1 - config.final) * (1 + math.cos(math.pi * done)) / 2)

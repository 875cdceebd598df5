"""AdamW with a linear warm-up and a cosine decay."""

import math

import torch
from torch import nn

from moebench.config.schema import OptimConfig


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW with weight decay on matrices, not on gains."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    gains = [p for p in model.parameters() if p.ndim <= 1]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": gains, "weight_decay": 0.0},
        ],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        fused=True,
    )


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """The rate of a step, 1 to `steps`: linear warm-up, then a half cosine down to `final`."""
    warmup = config.warmup * steps
    if step <= warmup:
        return config.lr * step / warmup
    done = (step - warmup) / (steps - warmup)
    return config.lr * (config.final + (1 - config.final) * (1 + math.cos(math.pi * done)) / 2)

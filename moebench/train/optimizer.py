"""AdamW with a linear warm-up and a cosine decay."""

import math

import torch
from torch import nn

from moebench.config.schema import OptimConfig


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW; matrices decay, gains do not."""
    matrices = [each for each in model.parameters() if each.ndim > 1]
    gains = [each for each in model.parameters() if each.ndim <= 1]
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
    """Rate of step 1 to `steps`: up in a line over the warm-up, then down along a half cosine."""
    warmup = config.warmup * steps
    if step <= warmup:
        return config.lr * step / warmup
    done = (step - warmup) / (steps - warmup)
    return config.lr * (config.final + (1 - config.final) * (1 + math.cos(math.pi * done)) / 2)

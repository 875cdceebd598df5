"""The learning rate's schedule, and which parameters decay."""

import itertools

import pytest
import torch

from moebench.config.schema import OptimConfig
from moebench.model.transformer import MoETransformer
from moebench.train.optimizer import learning_rate, make_optimizer


def test_rate_rises_to_the_peak_and_falls_to_the_final_share() -> None:
    config = OptimConfig(lr=1.0, warmup=0.1, final=0.2)
    rates = [learning_rate(config, step, 100) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == max(rates) == 1.0
    assert rates[-1] == pytest.approx(0.2)
    assert rates[54] == pytest.approx(0.6, abs=0.02), "half way down the cosine"
    assert all(one > two for one, two in itertools.pairwise(rates[9:]))


def test_rate_without_warmup_or_with_warmup_alone() -> None:
    assert learning_rate(OptimConfig(lr=1.0, warmup=0.0, final=0.0), 1, 1) == pytest.approx(0)
    assert learning_rate(OptimConfig(lr=1.0, warmup=1.0, final=0.0), 5, 5) == 1.0


def test_matrices_decay_and_gains_do_not() -> None:
    model = MoETransformer(
        vocab_size=8,
        d_model=8,
        num_layers=1,
        num_heads=1,
        num_experts=2,
        top_k=1,
        expert_dim=8,
    )
    optimizer = make_optimizer(model, OptimConfig())
    decayed, kept = optimizer.param_groups
    assert decayed["weight_decay"] == 0.1
    assert kept["weight_decay"] == 0
    assert [parameter.ndim for parameter in kept["params"]] == [1]
    numbers = sum(each.numel() for group in optimizer.param_groups for each in group["params"])
    assert numbers == sum(each.numel() for each in model.parameters())
    assert isinstance(optimizer, torch.optim.AdamW)

"""The learning rate's schedule, and which parameters decay."""

import itertools
from typing import Any, cast

import pytest
import torch

from moebench.config.schema import OptimConfig
from moebench.model.gating import Gating
from moebench.model.transformer import MoETransformer, initialize
from moebench.train.optimizer import AdamW, ParameterGroup, learning_rate, make_optimizer


def small(gating: Gating | None = None) -> MoETransformer:
    return MoETransformer(
        vocab_size=8,
        d_model=8,
        num_layers=1,
        num_heads=1,
        num_experts=2,
        top_k=1,
        expert_dim=8,
        gating=gating,
    )


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
    model = small()
    optimizer = make_optimizer(model, OptimConfig())
    decayed, kept = optimizer.groups
    assert decayed.weight_decay == 0.1
    assert kept.weight_decay == 0
    assert [parameter.ndim for parameter in kept.params] == [1]
    assert set(optimizer.state) == set(model.parameters())


def test_routers_learn_at_a_rate_of_their_own() -> None:
    """With gradients of 1, the first step moves each weight by its rate."""
    model = small(Gating(bias=True))
    initialize(model, 0)
    optimizer = make_optimizer(model, OptimConfig(lr=0.01, weight_decay=0.0, router_lr=3.0))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = {name: before[name] - value.detach() for name, value in model.named_parameters()}
    assert {name for name in moved if ".router." in name} == {
        "blocks.0.router.weight",
        "blocks.0.router.bias",
    }
    for name, by in moved.items():
        wanted = 0.03 if ".router." in name else 0.01
        assert torch.allclose(by, torch.full_like(by, wanted), rtol=1e-3), name


def test_adamw_equals_that_of_torch() -> None:
    """Also where a parameter has no gradient at first, and where a step must change nothing."""
    draw = torch.Generator().manual_seed(0)
    start = [torch.randn(5, 7, generator=draw), torch.randn(3, generator=draw)]
    ours, theirs = ([torch.nn.Parameter(each.clone()) for each in start] for _ in range(2))
    groups = [ParameterGroup(ours[:1], 0.1), ParameterGroup(ours[1:], 0.0)]
    optimizer = AdamW(groups, 0.01, (0.9, 0.95))
    other = torch.optim.AdamW(
        [
            {"params": theirs[:1], "weight_decay": 0.1},
            {"params": theirs[1:], "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=(0.9, 0.95),
        fused=True,
    )
    for step in range(6):
        for one, two in zip(ours, theirs, strict=True):
            grad = torch.randn(one.shape, generator=draw)
            one.grad, two.grad = (None, None) if step < 2 and one.ndim == 1 else (grad, grad)
        optimizer.found_inf = torch.tensor(float(step == 4))
        cast(Any, other).found_inf = optimizer.found_inf
        optimizer.lr = other.param_groups[0]["lr"] = other.param_groups[1]["lr"] = 0.01 * step
        before = [each.detach().clone() for each in ours]
        optimizer.step()
        other.step()
        for one, two, old in zip(ours, theirs, before, strict=True):
            assert torch.equal(one, two)
            assert step != 4 or torch.equal(one, old)
            assert all(
                torch.equal(value, optimizer.state[one][name])
                for name, value in other.state[two].items()
            )
    optimizer.zero_grad()
    assert all(each.grad is None for each in ours)

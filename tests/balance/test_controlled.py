"""SMEBU and the budget of zero-computation experts against loops and worked numbers."""

import math

import pytest
import torch
from torch import Tensor

from moebench.balance import Routing
from moebench.balance.controlled import Budget, Smebu
from tests.routings import random_routing


def routed(counts: Tensor) -> Routing:
    """The routing of a step of one sequence with these counts, [layers, experts]."""
    _, routing = random_routing(layers=len(counts), sequences=1, experts=counts.shape[-1])
    return routing._replace(counts=counts[:, None])


def test_smebu_is_a_loop_of_three_steps() -> None:
    method = Smebu(rate=0.1, momentum=0.5, sharpness=2.0)
    steps = [[10, 0, 2], [4, 4, 4], [0, 9, 3]]
    state = method.begin(1, 3)
    bias, momentum = [0.0] * 3, [0.0] * 3
    for counts in steps:
        state = method.update(state, routed(torch.tensor([counts])))
        clamped = [math.tanh(2 * (4 - each) / 4) for each in counts]
        for expert in range(3):
            move = 0.1 * (clamped[expert] - sum(clamped) / 3)
            momentum[expert] = 0.5 * momentum[expert] + 0.5 * move
            bias[expert] += momentum[expert]
    assert state.expert_bias[0].tolist() == pytest.approx(bias)
    assert state.momentum[0].tolist() == pytest.approx(momentum)
    assert state.expert_bias.sum().item() == pytest.approx(0, abs=1e-7)
    assert method.steering(state).bias is state.expert_bias


def test_an_expert_that_is_not_there_does_not_move() -> None:
    mask = torch.tensor([[True, True, False]])
    smebu, budget = Smebu(), Budget()
    routing = routed(torch.tensor([[6, 2, 0]]))
    for state in (
        smebu.update(smebu.begin(1, 3), routing, mask),
        budget.update(budget.begin(1, 3), routing, mask),
    ):
        assert state.expert_bias[0, 2] == 0
        assert state.expert_bias[0, 0] < 0 < state.expert_bias[0, 1]


def test_a_budget_moves_what_computes_alone_until_its_share_is_met() -> None:
    method = Budget(rate=0.1, share=2 / 3, zero_experts=1)
    state = method.update(method.begin(1, 3), routed(torch.tensor([[10, 10, 20]])))
    # a third of the assignments each is wanted, and a quarter was found
    assert state.expert_bias[0].tolist() == pytest.approx([0.1 / 12, 0.1 / 12, 0])
    met = method.update(state, routed(torch.tensor([[4, 4, 4]])))
    assert torch.allclose(met.expert_bias, state.expert_bias)

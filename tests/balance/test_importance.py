"""Importance, load and coupling losses against literal loops and worked numbers."""

import math

import pytest
import torch

from moebench.balance import Steering
from moebench.balance.coupling import Coupling, coupling
from moebench.balance.importance import Importance, squared_variation
from moebench.errors import ConfigError
from moebench.model.noise import keys
from moebench.model.router import Gating, Router
from moebench.model.selection import odds
from tests.routings import normal, random_routing


def test_a_squared_variation_is_0_if_even_and_experts_less_1_if_one_has_all() -> None:
    sums = torch.tensor([[2.0, 2.0, 2.0, 2.0], [8.0, 0.0, 0.0, 0.0], [3.0, 1.0, 3.0, 1.0]])
    assert squared_variation(sums).tolist() == [0.0, 3.0, 0.25]
    # Tutel: the variance of a sample, divided by the squared mean
    values = normal(6).exp()
    tutel = values.var() / values.mean() ** 2
    assert squared_variation(values).item() == pytest.approx(float(tutel) * 5 / 6)


@pytest.mark.parametrize("full", [0, 1])
def test_importance_is_a_loop_over_groups_and_has_a_gradient(full: int) -> None:
    logits, routing = random_routing(layers=2, sequences=4, tokens=5, experts=6, top_k=2)
    found = Importance(importance=0.5, full=full, balance_bsz=2).penalty(None, routing, 4 * 5)
    expected = 0.0
    for layer in range(2):
        for group in ([0, 1], [2, 3]):
            gates = [0.0] * 6
            for sequence in group:
                for token in range(5):
                    p = logits[layer, sequence, token].softmax(-1).tolist()
                    best = range(6) if full else sorted(range(6), key=lambda e: -p[e])[:2]
                    for expert in best:
                        gates[expert] += p[expert] / sum(p[e] for e in best)
            mean = sum(gates) / 6
            expected += 0.5 * sum((each / mean - 1) ** 2 for each in gates) / 6 / 4
    assert found.item() == pytest.approx(expected)
    (gradient,) = torch.autograd.grad(found, logits)
    assert gradient.norm() > 0
    with pytest.raises(ConfigError, match="would split the groups"):
        Importance(balance_bsz=3).penalty(None, routing, 20)


def test_odds_are_a_loop_over_experts() -> None:
    clean, spread = normal(7, 5), normal(7, 5, seed=1).exp()
    noisy = clean + spread * normal(7, 5, seed=2)
    found = odds(clean, noisy, spread, 2)
    for token in range(7):
        for expert in range(5):
            others = sorted((noisy[token, e].item() for e in range(5) if e != expert), reverse=True)
            z = (clean[token, expert].item() - others[1]) / spread[token, expert].item()
            assert found[token, expert].item() == pytest.approx(0.5 * math.erfc(-z / 2**0.5))
    assert (odds(clean, noisy, spread, 5) == 1).all()


def test_the_load_of_a_noisy_router_reaches_its_weights() -> None:
    method = Importance(importance=0.0, load=1.0)
    router = Router(8, 6, 2, Gating(noise=1.0, observes=method.observes)).double()
    torch.nn.init.normal_(router.weight)
    torch.nn.init.normal_(router.spread)
    x = normal(2, 5, 8)
    key = keys(0, 2, torch.device("cpu"))
    routing = router(x, Steering(noise=key), training=True).routing
    assert routing.soft_counts is not None
    value = method.penalty(None, routing, 10)
    assert value.item() == pytest.approx(squared_variation(routing.soft_counts.sum(1)).item())
    value.backward()
    assert router.weight.grad is not None
    assert router.spread.grad is not None
    assert min(router.weight.grad.norm(), router.spread.grad.norm()) > 0
    assert router(x).routing.soft_counts is None, "evaluation draws no noise"


def test_coupling_is_a_loop_and_0_where_experts_answer_their_own_rows() -> None:
    routers, gates, draws = (
        normal(2, 3, 4),
        normal(2, 3, 4, 5, seed=1),
        torch.rand(2, 3, 4).double(),
    )
    expected = 0.0
    for layer in range(2):
        rows = routers[layer]
        answers = [[0.0] * 3 for _ in range(3)]
        for i in range(3):
            nearest = min(float((rows[i] - rows[j]).norm()) for j in range(3) if j != i)
            eps = nearest / 2 / float(rows[i].norm())
            token = rows[i] * ((1 - eps) + draws[layer, i] * 2 * eps)
            assert (token - rows[i]).norm() <= nearest / 2 + 1e-12
            for j in range(3):
                answers[i][j] = float((token @ gates[layer, j]).norm())
        for i in range(3):
            for j in range(3):
                if i != j:
                    expected += max(answers[i][j] - 0.7 * answers[i][i], 0) / 9 / 2
                    expected += max(answers[j][i] - 0.7 * answers[i][i], 0) / 9 / 2
    assert coupling(routers, gates, draws, 0.7).item() == pytest.approx(expected)
    # an expert that reads the entry of its own row alone answers no other
    own = torch.eye(3).double()
    reads = torch.stack([torch.diag(row) for row in own])[None]
    assert coupling(own[None], reads, draws[:1, :, :3]).item() == 0
    assert coupling(own[None], reads.flip(1), draws[:1, :, :3]).item() > 0


def test_the_coupling_penalty_trains_routers_and_the_gates_of_experts() -> None:
    routers = [normal(3, 4, seed=each).requires_grad_() for each in (0, 1)]
    experts = [normal(3, 4, 10, seed=each).requires_grad_() for each in (2, 3)]
    made = [torch.Generator().manual_seed(seed) for seed in (7, 7, 8)]
    one, same, other = (
        Coupling(weight=2.0).expert_penalty(None, routers, experts, each) for each in made
    )
    assert one.equal(same)
    assert not one.equal(other)
    one.backward()
    assert all(each.grad is not None and each.grad.norm() > 0 for each in routers)
    for each in experts:
        assert each.grad is not None
        assert each.grad[..., :5].norm() > 0, "the gate of the SwiGLU"
        assert each.grad[..., 5:].norm() == 0, "its other half"

"""Methods with a penalty: what they add, what they carry, and what a worked example gives."""

import pytest
import torch
from torch import Tensor

from moebench.balance import Routing, join, observe
from moebench.balance.penalized import (
    LoadErrorInjection,
    ReMoE,
    RouterOrthogonality,
    SimBal,
    Specialize,
)
from moebench.balance.penalties import load_error, overlap, router_orthogonality, simbal
from moebench.balance.snippet import Snippet
from moebench.errors import ConfigError
from tests.routings import normal

LAYERS, SEQUENCES, TOKENS, EXPERTS, K = 2, 4, 6, 5, 2


def routed(logits: Tensor) -> Routing:
    """By softmax and top-k, with logits and scores."""
    parts = [observe(of_layer, top_k=K) for of_layer in logits]
    return join(parts, along="layers")._replace(scores=logits.softmax(-1), logits=logits)


def step(seed: int = 0) -> tuple[Tensor, Routing]:
    logits = normal(LAYERS, SEQUENCES, TOKENS, EXPERTS, seed=seed).requires_grad_()
    return logits, routed(logits)


@pytest.mark.parametrize(
    ("method", "penalty"),
    [(SimBal(0.5), simbal), (RouterOrthogonality(0.5), router_orthogonality)],
)
def test_a_penalty_of_weights_is_scaled_and_has_a_gradient(method: SimBal, penalty) -> None:
    routers = [normal(EXPERTS, 8, seed=seed).requires_grad_() for seed in range(LAYERS)]
    found = method.weight_penalty(None, routers)
    assert found.item() == pytest.approx(penalty(torch.stack(routers)).item() / 2)
    found.backward()
    assert all(each.grad is not None and each.grad.norm() > 0 for each in routers)


def test_load_error_injection_adds_to_the_gradient_of_every_token() -> None:
    method = LoadErrorInjection(weight=0.5)
    state = method.begin(LAYERS, EXPERTS)
    first, routing = step()
    assert torch.autograd.grad(method.penalty(state, routing, 24), first)[0].abs().max() < 1e-17
    state = method.update(state, routing)
    assert torch.allclose(state.frequency, routing.counts.sum(1) / 48)
    logits, routing = step(seed=1)
    (found,) = torch.autograd.grad(method.penalty(state, routing, 24), logits)
    expected = 0.5 * load_error(state.frequency).double() / 24 / LAYERS
    assert torch.allclose(found, expected[:, None, None].expand_as(found), atol=1e-9)


def test_specialize_is_overlap_and_variance() -> None:
    _, routing = step()
    outputs = normal(LAYERS, SEQUENCES, TOKENS, K, 3, seed=2)
    routing = routing._replace(outputs=outputs)
    assert routing.scores is not None
    method = Specialize(orthogonality=0.5, variance=2.0)
    state = method.update(method.begin(LAYERS, EXPERTS), routing)
    assert torch.allclose(state.mean, routing.scores.mean((1, 2)).float())
    variance = routing.scores.flatten(1, 2).var(1, correction=0).mean()
    expected = 0.5 * overlap(outputs.flatten(0, 2)).mean() - 2 * variance
    assert method.penalty(state, routing, 24).item() == pytest.approx(expected.item(), rel=1e-6)


def test_remoe_raises_lambda_until_k_experts_are_active() -> None:
    method = ReMoE(start=1e-8, factor=1.2, top_k=K)
    state = method.begin(LAYERS, EXPERTS)
    gates = normal(LAYERS, SEQUENCES, TOKENS, EXPERTS).relu().requires_grad_()
    active = gates > 0
    routing = step()[1]._replace(counts=active.sum(2), scores=gates)
    assert active.sum() / (LAYERS * 24) > K
    found = method.penalty(state, routing, 24)
    assert found.item() == pytest.approx(1e-8 * gates.sum().item() / 24 / LAYERS)  # even at first
    after = method.update(state, routing)
    assert after.weight.item() == pytest.approx(1.2e-8)
    fewer = routing._replace(counts=torch.ones_like(routing.counts))  # 5 a sequence of 6 tokens
    assert method.update(after, fewer).weight.item() == pytest.approx(1e-8)
    assert method.metrics(after)["weight"] is after.weight
    none = routing._replace(counts=torch.zeros_like(routing.counts))
    assert method.update(after, none).frequency.equal(after.frequency)


def test_the_snippet_acts_at_every_so_manieth_call() -> None:
    method = Snippet(weight=1.0, every=3)
    state = method.begin(LAYERS, EXPERTS)
    used, mean = torch.zeros(LAYERS, EXPERTS), torch.zeros(LAYERS, EXPERTS, dtype=torch.float64)
    for call in range(1, 7):
        logits, routing = step(seed=call)
        found = method.penalty(state, routing, 24)
        (gradient,) = torch.autograd.grad(found, logits)
        for layer in range(LAYERS):
            p = logits[layer].detach().softmax(-1).flatten(0, 1)
            top = p.topk(K, -1)
            for expert in range(EXPERTS):
                chose = top.indices == expert
                if chose.any():
                    share = top.values / top.values.sum(-1, keepdim=True)
                    used[layer, expert] += 1
                    mean[layer, expert] += share[chose].mean()
        if call % 3:
            assert found.item() == 0
            assert not gradient.any()
        else:
            assert found.item() == pytest.approx((used / 3 * mean / 3).sum().item())
            assert gradient.any()
            used, mean = used * 0, mean * 0
        state = method.update(state, routing)
    assert state.calls.item() == 0


def test_the_snippet_takes_a_step_as_one_pass() -> None:
    method = Snippet()
    with pytest.raises(ConfigError, match="a pass of 4 of the step's 8 sequences"):
        method.penalty(method.begin(LAYERS, EXPERTS), step()[1], 48)

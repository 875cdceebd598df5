"""The loss against a literal loop, published and derived numbers, and its gradient by algebra."""

import pytest
import torch

from moebench.balance import Global, Micro, Routing, Sequence, balance_loss, observe, z_loss
from tests.routings import literal_balance_loss, random_routing, route


def lbl(routing: Routing, scope: Global) -> torch.Tensor:
    return balance_loss(scope.frequency(routing), routing.prob_mass)


@pytest.mark.parametrize(("scope", "size"), [(Sequence(), 1), (Micro(2), 2), (Global(), 8)])
def test_equals_a_loop_over_tokens(scope: Global, size: int) -> None:
    logits, routing = random_routing()
    groups = [list(range(start, start + size)) for start in range(0, 8, size)]
    expected = literal_balance_loss(logits.detach(), 2, groups)
    assert lbl(routing, scope).item() == pytest.approx(expected, rel=1e-6)


def test_uniform_frequency_gives_one_and_no_gradient() -> None:
    logits, routing = random_routing(experts=8)
    uniform = torch.full_like(routing.prob_mass, 1 / 8).detach()
    loss = balance_loss(uniform, routing.prob_mass)
    loss.backward()
    assert loss.item() == 1.0
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-17


def test_uniform_probability_gives_one() -> None:
    logits = torch.zeros(1, 4, 5, 8, dtype=torch.float64)
    routing = route(logits, 2)  # ties go to the same experts: f is far from uniform
    assert routing.counts.sum(1).max() == 20
    assert lbl(routing, Global()).item() == pytest.approx(1.0, abs=1e-15)


def test_gradient_is_the_published_one() -> None:
    """dLBL/dz_t = (E / T) p_t * (f - <f, p_t>), and its rows sum to 0."""
    logits, routing = random_routing(layers=1)
    routing = routing._replace(counts=routing.counts.double())
    frequency = Micro(2).frequency(routing)
    balance_loss(frequency, routing.prob_mass).backward()
    p = logits.detach().softmax(-1)
    f = frequency[:, :, None]
    expected = 6 / (8 * 5) * p * (f - (f * p).sum(-1, keepdim=True))
    assert logits.grad is not None
    assert torch.allclose(logits.grad, expected, atol=1e-15)
    assert logits.grad.sum(-1).abs().max() < 1e-16


def test_two_domains_on_two_pairs_of_experts() -> None:
    """E = 4, one domain on experts 0 and 1, the other on 2 and 3: micro 2, global 1."""
    hot = 40.0  # so far above the rest that the softmax is 1/2 on each of the pair
    logits = torch.full((1, 2, 6, 4), -hot, dtype=torch.float64)
    logits[0, 0, :, :2] = hot
    logits[0, 1, :, 2:] = hot
    routing = route(logits, 2)
    assert lbl(routing, Micro(1)).item() == pytest.approx(2.0)
    assert lbl(routing, Global()).item() == pytest.approx(1.0)


def test_layers_are_not_pooled_before_the_product() -> None:
    """E = 2, layer 0 all on expert 0, layer 1 all on expert 1: 2 per layer, 1 if pooled."""
    logits = torch.full((2, 1, 4, 2), -40.0, dtype=torch.float64)
    logits[0, ..., 0] = logits[1, ..., 1] = 40.0
    routing = route(logits, 1)
    assert lbl(routing, Global()).item() == pytest.approx(2.0)


def test_is_not_bounded_below_by_one() -> None:
    probs = torch.tensor([[[0.51, 0.49]] * 3 + [[0.01, 0.99]]], dtype=torch.float64)
    routing = observe(probs.log(), probs, probs.topk(1).indices)
    assert lbl(routing, Global()).item() == pytest.approx(0.885)


def test_parts_of_a_step_sum_to_its_loss_and_gradient() -> None:
    logits, routing = random_routing()
    frequency = Global().frequency(routing)
    (whole,) = torch.autograd.grad(
        balance_loss(frequency, routing.prob_mass), logits, retain_graph=True
    )
    parts = [
        balance_loss(frequency[:, part], routing.prob_mass[:, part], total=40)
        for part in (slice(0, 3), slice(3, 4), slice(4, 8))
    ]
    (summed,) = torch.autograd.grad(torch.stack(parts).sum(), logits)
    assert torch.allclose(whole, summed, atol=1e-15)


def test_an_expert_that_nobody_selects_has_its_probability_pushed_up_not_down() -> None:
    logits, routing = random_routing(layers=1, experts=12, top_k=1)
    unused = routing.counts.sum((0, 1)) == 0
    assert unused.any()
    lbl(routing, Global()).backward()
    assert logits.grad is not None
    assert (logits.grad[..., unused] < 0).all()


def test_z_loss_is_the_mean_over_layers_and_tokens() -> None:
    logits, routing = random_routing()
    assert torch.allclose(z_loss(routing), logits.logsumexp(-1).square().mean())
    halves = [
        routing._replace(logsumexp_sq=routing.logsumexp_sq[:, part])
        for part in (slice(0, 4), slice(4, 8))
    ]
    summed = torch.stack([z_loss(half, total=40) for half in halves]).sum()
    assert torch.allclose(summed, z_loss(routing))

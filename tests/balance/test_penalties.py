"""Every penalty against a literal loop or a derived number, and its gradient where it has one."""

import math

import pytest
import torch

from moebench.balance import Global, Micro
from moebench.balance.penalties import (
    adapted,
    injected_load_error,
    load_error,
    overlap,
    relu_l1,
    router_orthogonality,
    score_variance,
    simbal,
)
from tests.routings import normal, random_routing


def test_simbal_is_a_loop_and_zero_for_orthonormal_rows() -> None:
    weight = normal(2, 3, 5)
    expected = 0.0
    for layer in weight:
        for i in range(3):
            for j in range(3):
                expected += abs(float(layer[i] @ layer[j]) - (i == j)) / 2
    assert simbal(weight).item() == pytest.approx(expected)
    assert simbal(torch.eye(4, 6)[None]).item() == 0
    assert simbal(2 * torch.eye(4, 6)[None]).item() == 12  # 4 entries of 4 - 1


def test_router_orthogonality_is_a_mean_of_cosines_and_sees_no_length() -> None:
    weight = normal(2, 3, 5)
    expected = 0.0
    for layer in weight:
        for i in range(3):
            for j in range(3):
                cosine = float(layer[i] @ layer[j] / layer[i].norm() / layer[j].norm())
                expected += (cosine - (i == j)) ** 2 / 18
    assert router_orthogonality(weight).item() == pytest.approx(expected)
    assert router_orthogonality(7 * weight).item() == pytest.approx(expected)
    # two rows alike among three: the two entries beside the diagonal are 1
    same = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert router_orthogonality(same[None]).item() == pytest.approx(2 / 9)


def test_score_variance_is_a_loop_with_the_gradient_of_the_variance() -> None:
    scores = normal(2, 3, 4, 5).softmax(-1).requires_grad_()
    expected = 0.0
    for layer in range(2):
        for expert in range(5):
            column = scores[layer, :, :, expert].flatten().tolist()
            mean = sum(column) / 12
            expected -= sum((each - mean) ** 2 for each in column) / 5 / 12 / 2
    found = score_variance(scores, 12, mean=scores.mean((1, 2)))
    assert found.item() == pytest.approx(expected)
    variance = -scores.flatten(1, 2).var(1, correction=0).mean(-1).mean()
    assert variance.item() == pytest.approx(expected)
    (own,) = torch.autograd.grad(found, scores)
    (other,) = torch.autograd.grad(variance, scores)
    assert torch.allclose(own, other, atol=1e-15)


def test_overlap_is_the_squared_length_of_projections() -> None:
    outputs = normal(6, 3, 4)
    found = overlap(outputs)
    for row, x in enumerate(outputs):
        expected = 0.0
        for j in range(3):
            for k in range(3):
                if k != j:
                    along = (x[j] @ x[k]) / (x[k] @ x[k] + 1e-6) * x[k]
                    expected += along.square().sum().item()
        assert found[row].item() == pytest.approx(expected, rel=1e-12)


def test_overlap_leaves_out_absent_experts_and_orthogonal_ones() -> None:
    outputs = normal(2, 3, 4)
    present = torch.tensor([[True, True, False], [True, False, False]])
    found = overlap(outputs, present)
    assert found[0].item() == pytest.approx(overlap(outputs[:1, :2]).item())
    assert found[1].item() == 0
    assert overlap(torch.eye(3, 4)[None]).item() == 0
    # x twice, with no length lost: |x|^2 for each of the two ordered pairs
    twice = torch.tensor([[[3.0, 4.0], [3.0, 4.0]]])
    assert overlap(twice).item() == pytest.approx(50, rel=1e-6)


def test_load_error_has_the_published_factor() -> None:
    found = load_error(torch.tensor([0.5, 0.5, 0.0, 0.0]))  # utilisation (2, 2, 0, 0)
    factor = math.tanh(1)
    assert factor == pytest.approx(0.7616, abs=5e-5)
    assert found.tolist() == pytest.approx([factor, factor, -factor, -factor])
    assert load_error(torch.full((4,), 0.25)).tolist() == [0] * 4
    # tau bounds what is injected
    assert load_error(torch.tensor([1.0, 0, 0, 0]), tau=0.5).max().item() == pytest.approx(
        0.5 * math.tanh(6)
    )


def test_injected_load_error_is_the_gradient_of_every_token() -> None:
    logits, routing = random_routing()
    frequency = Micro(2).frequency(routing)
    mass = logits.sum(2)
    injected_load_error(frequency, mass, total=40).backward()
    assert logits.grad is not None
    expected = load_error(frequency).double()[:, :, None].expand_as(logits) / 40 / 2
    assert torch.allclose(logits.grad, expected, atol=1e-9)


def test_relu_l1_is_a_loop_and_the_l1_norm_at_even_loads() -> None:
    gates = normal(2, 4, 3, 5).relu()
    counts = (gates > 0).sum(2)
    shares = counts.sum(1) / counts.sum((1, 2))[:, None]
    expected = 0.0
    for layer in range(2):
        for sequence in range(4):
            for token in range(3):
                for expert in range(5):
                    used = 5 * shares[layer, expert].item()
                    expected += used * gates[layer, sequence, token, expert].item() / 12 / 2
    _, routing = random_routing(2, 4, 3, 5)
    frequency = Global().frequency(routing._replace(counts=counts.double()))
    assert relu_l1(frequency, gates.sum(2), 12).item() == pytest.approx(expected, rel=1e-6)
    even = torch.full_like(frequency, 0.2)
    assert relu_l1(even, gates.sum(2), 12).item() == pytest.approx(gates.sum().item() / 24)


@pytest.mark.parametrize(("active", "expected"), [(9.0, 1.2e-8), (1.5, 1e-8 / 1.2), (2.0, 1e-8)])
def test_lambda_follows_the_number_of_active_experts(active: float, expected: float) -> None:
    found = adapted(torch.tensor(1e-8), torch.tensor(active), 2)
    assert found.item() == pytest.approx(expected)


def test_parts_of_a_step_add_up() -> None:
    scores = normal(2, 6, 4, 5).softmax(-1)
    mean = scores.mean((1, 2))
    whole = score_variance(scores, 24, mean=mean)
    parts = [score_variance(each, 24, mean=mean) for each in scores.split(2, 1)]
    assert torch.allclose(torch.stack(parts).sum(), whole)
    _, routing = random_routing()
    f, mass = Global().frequency(routing), routing.prob_mass
    for penalty in (injected_load_error, relu_l1):
        parts = [penalty(*each, 40) for each in zip(f.split(4, 1), mass.split(4, 1), strict=True)]
        assert torch.allclose(parts[0] + parts[1], penalty(f, mass, 40))

"""Where other systems went wrong: each mistake that could be made here, shown not to be."""

import inspect

import pytest
import torch
from torch import Tensor

from moebench.balance import (
    Estimator,
    Global,
    Micro,
    Sequence,
    Term,
    balance_loss,
    observe,
    selected_mass,
)
from moebench.metrics import load
from moebench.metrics.specialization import coactivation
from moebench.train.gradients import accumulate_gradients
from moebench.train.ranks import Ranks
from moebench.train.step import Objective
from tests.routings import random_routing, route
from tests.train import invariance
from tests.train.invariance import model_of

FP64 = torch.float64


def one_step(device_bsz: int = 8) -> invariance.Step:
    return next(invariance.steps(device_bsz, Ranks(), None, several=False))


def test_p_is_of_all_experts_and_not_of_the_selected_ones() -> None:
    """Over the selected experts alone, the loss says nothing to a router about the others."""
    logits, routing = random_routing(layers=1)
    routing = routing._replace(counts=routing.counts.double())
    f = Global().frequency(routing)
    (full,) = torch.autograd.grad(balance_loss(f, routing.prob_mass), logits, retain_graph=True)
    (part,) = torch.autograd.grad(balance_loss(f, selected_mass(routing)), logits)
    chosen = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, routing.expert_index, True)
    assert full[~chosen].abs().min() > 1e-9
    assert part[~chosen].abs().max() < 1e-16


def test_the_softmax_is_taken_once() -> None:
    logits = torch.tensor([[[3.0, 1.0, 0.0, -2.0]]], dtype=FP64)
    routing = observe(logits, top_k=1)
    assert torch.allclose(routing.prob_mass[0, 0], logits[0, 0].softmax(-1))
    given = observe(logits, logits.softmax(-1), torch.tensor([[[0]]]))
    assert torch.equal(given.prob_mass, routing.prob_mass)


def test_the_loss_is_not_off_unless_something_else_is_on() -> None:
    """With a weight and a scope, the term acts: no flag must be set for it, as elsewhere."""
    model, what = model_of(FP64), Objective((Term(Global(), 1.0),), micro_bsz=2)
    outcome = accumulate_gradients(model, what, one_step())
    weight, value = outcome.balance[0]
    assert weight == 1.0
    assert value > 1.001


@pytest.mark.parametrize("scope", [Sequence(), Micro(2), Global()])
def test_the_number_of_passes_does_not_weigh_the_loss(scope: Global) -> None:
    """Nor are there factors 1 / passes, passes or 1 / micro-batch size, which all were bugs."""
    found = []
    for device_bsz in (8, 4, 2, 1):
        model = model_of(FP64)
        grads = []
        for terms in ((Term(scope, 1.0),), ()):
            model.zero_grad()
            accumulate_gradients(model, Objective(terms, micro_bsz=2), one_step(device_bsz))
            grad = model.get_parameter("blocks.0.router.weight").grad
            assert grad is not None
            grads.append(grad.clone())
        found.append(grads[0] - grads[1])
    for each in found[1:]:
        assert torch.allclose(each, found[0], rtol=1e-9)


def test_a_counting_pass_counts_once() -> None:
    """As recomputation of a forward pass did twice elsewhere: counts are returned, never added."""
    what = Objective((Term(Global(), 1.0),), micro_bsz=2, estimator=Estimator("ema", decay=0.5))
    window = Objective((Term(Global(), 1.0),), micro_bsz=2, estimator=Estimator(window_steps=2))
    for each in (what, window):
        states = []
        for device_bsz in (8, 1):  # the second makes a counting pass for a window
            outcome = accumulate_gradients(model_of(FP64), each, one_step(device_bsz))
            assert outcome.states[0] is not None
            states.append(outcome.states[0])
        for one, other in zip(*states, strict=True):
            assert torch.equal(one, other)
    assignments = states[0].past.sum()
    assert assignments == 2 * 8 * invariance.LENGTH * 2, "layers x sequences x tokens x top_k"


def test_an_all_reduce_leaves_the_ranks_own_counts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place, it made the local count the global one."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda value: value.mul_(2))
    ranks, own = Ranks(0, 2), torch.arange(6).reshape(1, 2, 3)
    kept = own.clone()
    [summed] = ranks.sum_counts([own])
    assert torch.equal(own, kept)
    assert torch.equal(summed, 2 * kept)
    assert ranks.bytes == 6 * 8


def test_layers_that_lean_opposite_ways_do_not_cancel() -> None:
    logits = torch.full((2, 1, 4, 2), -40.0, dtype=FP64)
    logits[0, ..., 0] = logits[1, ..., 1] = 40.0
    routing = route(logits, 1)
    f = Global().frequency(routing)
    assert balance_loss(f, routing.prob_mass).item() == pytest.approx(2.0)
    pooled = balance_loss(f, routing.prob_mass, layers="pooled")
    assert pooled.item() == pytest.approx(1.0), "pooled, both layers could collapse unseen"


def test_max_vio_is_an_excess_and_not_a_distance() -> None:
    """An idle expert is no violation: max(c) / mean - 1, and not the largest |c - mean|."""
    counts = torch.tensor([11, 11, 11, 11, 11, 11, 11, 3])
    assert load.max_violation(counts).item() == pytest.approx(0.1)


def test_max_vio_leaves_no_expert_out() -> None:
    counts = torch.ones(64, dtype=torch.long)
    counts[5] = 9
    assert load.max_violation(counts).item() == pytest.approx(9 / (72 / 64) - 1)


def test_co_activation_counts_all_pairs_and_not_adjacent_ones() -> None:
    index = torch.tensor([[[[0, 1, 2]]]])
    found = coactivation(index, 3)[0]
    assert torch.equal(found, torch.ones(3, 3, dtype=torch.long))


def literal(counts: Tensor, mass: Tensor) -> Tensor:
    """Hugging Face's: all layers as one, and the value k at uniform routing."""
    f = counts.sum((0, 1)) / counts.sum((0, 1)).sum()
    p = mass.sum((0, 1)) / mass.sum()
    return counts.shape[-1] * (f * p).sum()


def test_the_conventions_of_others_are_reached_and_not_the_default() -> None:
    _, routing = random_routing()
    routing = routing._replace(counts=routing.counts.double())
    f = Global().frequency(routing)
    mean, summed, pooled = (
        balance_loss(f, routing.prob_mass, layers=each) for each in ("mean", "sum", "pooled")
    )
    assert torch.allclose(summed, 2 * mean)
    assert torch.allclose(pooled, literal(routing.counts, routing.prob_mass))
    assert not torch.allclose(pooled, mean)
    assert inspect.signature(balance_loss).parameters["layers"].default == "mean"

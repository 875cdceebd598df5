"""Global means global: a step's loss and gradients do not depend on how it is split."""

import copy
import math

import pytest
import torch
from torch import Tensor

from moebench.balance import Estimator, Global, Micro, Sequence, Shuffled, Term, balance_loss
from moebench.train.gradients import accumulate_gradients, estimator_error
from moebench.train.ranks import Ranks
from moebench.train.step import Objective, Step
from tests.train import invariance
from tests.train.invariance import BOUNDS, ESTIMATORS, SCOPES, gradients, model_of, objective

FP64 = torch.float64
ROUTER = "blocks.0.router.weight"


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("dtype", BOUNDS, ids=["fp64", "fp32"])
def test_every_split_in_every_order_gives_the_same(scope: str, dtype: torch.dtype) -> None:
    """In fp32, whose rounding is no estimator's own, of those without a state."""
    for estimator in ESTIMATORS if dtype == FP64 else ("exact", "buffer of 2"):
        for varied, off in invariance.worst(scope, estimator, dtype, Ranks()).items():
            assert off < BOUNDS[dtype], (estimator, varied)


@pytest.mark.parametrize(
    ("size", "estimators"),
    [
        (2, ("exact", "buffer of 2", "stale", "ema", "window of 3")),
        (4, ("exact", "buffer of 2")),
    ],
)
def test_every_number_of_ranks_gives_the_same(size: int, estimators: tuple[str, ...]) -> None:
    for case, off in invariance.measure_on_ranks(FP64, size, estimators).items():
        assert off < BOUNDS[FP64], case


def router_gradient(terms: tuple[Term, ...], estimator: Estimator | None = None) -> Tensor:
    what = Objective(terms, micro_bsz=2, estimator=estimator or Estimator())
    return gradients(what).gradients[ROUTER]


def test_scopes_and_estimators_differ_if_micro_batches_do() -> None:
    whole = router_gradient((Term(Global(), 10.0),))
    others = {
        "micro": router_gradient((Term(Micro(2), 10.0),)),
        **{
            name: router_gradient((Term(Global(), 10.0),), each)
            for name, each in ESTIMATORS.items()
            if name != "exact"
        },
    }
    for name, each in others.items():
        assert (each - whole).norm() > 0.01 * whole.norm(), name


def test_longer_passes_bring_the_buffer_nearer_to_the_whole_step() -> None:
    term = (Term(Global(), 10.0),)
    whole = router_gradient(term)
    off = [
        (router_gradient(term, Estimator("buffer", pass_bsz=size)) - whole).norm()
        for size in (2, 4, 8)
    ]
    assert off[0] > off[1] > off[2] == 0


def test_the_gradient_of_a_term_is_proportional_to_its_weight() -> None:
    """Other systems had gradients that did not flow, and coefficients that only switched."""
    none, once, twice = (
        router_gradient(() if not weight else (Term(Global(), weight),))
        for weight in (0.0, 1.0, 2.0)
    )
    assert (once - none).norm() > 0.1 * none.norm()
    assert torch.allclose(twice - none, 2 * (once - none), rtol=1e-9)


def test_no_balance_term_is_in_the_reported_cross_entropy() -> None:
    none = gradients(Objective((), micro_bsz=2)).losses[0]
    assert torch.equal(none, gradients(objective("global", "exact")).losses[0])


def first_step(device_bsz: int = 8, number: int = 1) -> Step:
    step = next(invariance.steps(device_bsz, Ranks(), None, several=False))
    return Step(step.tokens, device_bsz, number=number, domain=step.domain, seed=step.seed)


def test_conventions_scale_the_gradient() -> None:
    def of(**conventions: object) -> Tensor:
        model, terms = model_of(FP64), (Term(Global(), 10.0),)
        model.zero_grad()
        what = Objective(terms, micro_bsz=2, **conventions)  # pyright: ignore
        accumulate_gradients(model, what, first_step(2))
        grad = model.get_parameter(ROUTER).grad
        assert grad is not None
        return grad.clone()

    model = model_of(FP64)
    model.zero_grad()
    accumulate_gradients(model, Objective((), micro_bsz=2), first_step())
    none = model.get_parameter(ROUTER).grad
    assert none is not None
    none, plain = none.clone(), of()
    assert torch.allclose(of(layers="sum") - none, 2 * (plain - none))
    assert torch.allclose(of(uniform=2) - none, 2 * (plain - none))
    assert not torch.allclose(of(layers="pooled"), plain)
    assert not torch.allclose(of(probs="top_k"), plain)


def test_domain_weights_scale_each_domains_part() -> None:
    def loss(weights: tuple[float, ...] | None) -> float:
        term = Term(SCOPES["domain"], 1.0, domain_weights=weights)
        model = model_of(FP64)
        found = accumulate_gradients(model, Objective((term,), micro_bsz=2), first_step(2))
        return found.balance[0][1].item()

    ones = [tuple(float(each == domain) for each in range(4)) for domain in range(4)]
    assert loss((1.0,) * 4) == pytest.approx(loss(None))
    assert sum(map(loss, ones)) == pytest.approx(loss(None))
    assert loss((2.0, 0.5, 1.0, 0.0)) == pytest.approx(
        2 * loss(ones[0]) + 0.5 * loss(ones[1]) + loss(ones[2])
    )


def test_terms_start_and_stop_at_their_steps() -> None:
    terms = (Term(Micro(2), 2.0, stop=1), Term(Global(), 2.0, start=1))
    for number, scope in ((1, Micro(2)), (2, Global())):
        model = model_of(FP64)
        model.zero_grad()
        step = first_step(number=number)
        switched = accumulate_gradients(model, Objective(terms, micro_bsz=2), step)
        grad = model.get_parameter(ROUTER).grad
        assert grad is not None
        grad = grad.clone()
        model.zero_grad()
        alone = accumulate_gradients(model, Objective((Term(scope, 2.0),), micro_bsz=2), step)
        other = model.get_parameter(ROUTER).grad
        assert other is not None
        assert torch.equal(grad, other), "bit for bit"
        assert switched.balance[number - 1] == alone.balance[0]
        assert switched.balance[2 - number] == (0.0, torch.zeros(()))


def test_the_outcome_covers_the_whole_step_in_the_order_of_the_data() -> None:
    model, what = model_of(FP64), objective("global", "exact")
    model.zero_grad()
    whole = accumulate_gradients(model, what, first_step())
    step = Step(first_step().tokens, 2, domain=first_step().domain, order=[3, 0, 2, 1])
    parts = accumulate_gradients(model, what, step)
    assert torch.equal(parts.routing.expert_index, whole.routing.expert_index)
    assert torch.equal(parts.routing.counts, whole.routing.counts)
    assert torch.allclose(parts.routing.prob_mass, whole.routing.prob_mass)
    expected = balance_loss(Global().frequency(whole.routing), whole.routing.prob_mass)
    assert parts.balance[0][1].item() == pytest.approx(expected.item())


class Counted:
    """A model that counts its passes with and without gradient."""

    def __init__(self) -> None:
        self.model = model_of(FP64)
        self.calls = {True: 0, False: 0}

    def __call__(self, *inputs: Tensor, **more: bool) -> object:
        self.calls[torch.is_grad_enabled()] += 1
        return self.model(*inputs, **more)

    def __getattr__(self, name: str) -> object:
        return getattr(self.model, name)


@pytest.mark.parametrize(
    ("scope", "estimator", "device_bsz", "counting"),
    [
        (Global(), Estimator(), 8, False),
        (Global(), Estimator(), 4, True),
        (Micro(2), Estimator(), 2, False),
        (Micro(2), Estimator(), 4, False),
        (Micro(2), Estimator(), 1, True),
        (Sequence(), Estimator(), 1, False),
        (Shuffled(2), Estimator(), 2, True),
        (Shuffled(2, 4), Estimator(), 4, False),
        (Global(), Estimator("buffer", pass_bsz=2), 2, False),
        (Global(), Estimator("buffer", pass_bsz=2), 4, False),
        (Global(), Estimator("buffer", pass_bsz=2), 1, True),
        (Global(), Estimator("stale"), 1, False),
        (Global(), Estimator("ema", decay=0.5), 1, False),
    ],
)
def test_a_counting_pass_runs_only_if_counts_would_come_too_late(
    scope: Global, estimator: Estimator, device_bsz: int, counting: bool
) -> None:
    model = Counted()
    what = Objective((Term(scope, 1.0),), micro_bsz=2, estimator=estimator)
    accumulate_gradients(model, what, first_step(device_bsz))  # pyright: ignore
    passes = 8 // device_bsz
    assert model.calls == {True: passes, False: passes if counting else 0}


def test_the_error_of_an_estimator_is_that_of_its_router_gradient() -> None:
    model, step = model_of(FP64), first_step(2)
    terms = (Term(Global(), 10.0),)

    def balance_gradient(estimator: Estimator) -> Tensor:
        found = []
        for each in (terms, ()):
            model.zero_grad()
            accumulate_gradients(model, Objective(each, micro_bsz=2, estimator=estimator), step)
            grads = [model.get_parameter(f"blocks.{layer}.router.weight").grad for layer in (0, 1)]
            found.append(torch.cat([grad.flatten() for grad in grads if grad is not None]))
        return found[0] - found[1]

    buffer = Estimator("buffer", pass_bsz=2)
    g, best = balance_gradient(buffer), balance_gradient(Estimator())
    model.zero_grad()
    found = estimator_error(model, Objective(terms, 2, estimator=buffer), step, [None])
    assert found.error == pytest.approx(((g - best).norm() / best.norm()).item())
    assert found.cosine == pytest.approx((g @ best / (g.norm() * best.norm())).item())
    assert found.error > 0.1
    assert all(each.grad is None for each in model.parameters()), "it leaves no trace"
    exact = estimator_error(model, Objective(terms, 2), step, [None])
    assert (exact.error, exact.cosine) == (0, pytest.approx(1))
    assert math.isnan(estimator_error(model, Objective((), 2), step, []).error)


def test_an_expert_that_no_token_selects_gets_exactly_no_gradient() -> None:
    model = model_of(FP64, top_k=1)
    with torch.no_grad():
        router = model.get_parameter(ROUTER)
        router[3] = router[:3].mean(0)  # never the largest
    outcome = accumulate_gradients(model, objective("global", "exact"), first_step(2))
    unused = outcome.routing.counts[0].sum(0) == 0
    assert unused[3]
    for name in ("up", "down"):
        grad = model.get_parameter(f"blocks.0.experts.{name}").grad
        assert grad is not None
        assert (grad[unused] == 0).all()
        assert (grad[~unused] != 0).flatten(1).any(1).all()


@pytest.mark.gpu
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_gpu_agrees_with_the_cpu(scope: str, estimator: str) -> None:
    what, found = objective(scope, estimator), []
    for kind in ("cpu", "cuda"):
        model = copy.deepcopy(model_of(torch.float32)).to(kind)
        model.zero_grad()
        states = None
        for number in (1, 2) if what.estimator.carries else (1,):
            step = first_step(2, number)
            step = Step(step.tokens.to(kind), 2, number=number, domain=step.domain, seed=step.seed)
            states = accumulate_gradients(model, what, step, states).states
        grad = model.get_parameter(ROUTER).grad
        assert grad is not None
        found.append(grad.cpu())
    assert (found[1] - found[0]).norm() < 1e-3 * found[0].norm()

"""Forces equal the gradients of plain autograd, and leave no trace."""

import copy

import pytest
import torch
import torch.nn.functional as F

from moebench.balance import Estimator, Global, Micro, Term, balance_loss
from moebench.config.compose import Composer
from moebench.config.router_keys import GATES
from moebench.train.build import make_model, make_objective
from moebench.train.forces import forces
from moebench.train.gradients import accumulate_gradients
from moebench.train.step import Objective, Step, initial_states
from tests.train.invariance import model_of

FP64 = torch.float64


def a_step(device_bsz: int = 8) -> Step:
    tokens = torch.randint(0, 16, (8, 7), generator=torch.Generator().manual_seed(1))
    return Step(tokens, device_bsz)


def test_forces_equal_autograd_of_each_term() -> None:
    model, step = model_of(FP64), a_step()
    terms = Term(Micro(2), 0.3, label="3 micro"), Term(Global(), 0.1, label="global")
    objective = Objective(terms, micro_bsz=2, z=0.01)
    found = forces(model, objective, step, initial_states(objective, model, step))

    logits, routing = model(step.tokens[:, :-1])
    nats = F.cross_entropy(logits.flatten(0, 1), step.tokens[:, 1:].flatten())
    weights = [each for name, each in model.named_parameters() if name.endswith("router.weight")]

    def pull(value: torch.Tensor) -> torch.Tensor:
        grads = torch.autograd.grad(value, weights, retain_graph=True)
        return torch.cat([each.flatten() for each in grads])

    micro, whole = (
        weight * balance_loss(scope.frequency(routing), routing.prob_mass)
        for weight, scope in ((0.3, Micro(2)), (0.1, Global()))
    )
    task = pull(nats)
    assert found["forces/cross_entropy"] == pytest.approx(float(task.norm()))
    for end, value in {"": micro + whole, "/3 micro": micro, "/global": whole}.items():
        expected = pull(value)
        assert found[f"forces/balance{end}"] == pytest.approx(float(expected.norm()), rel=1e-6)
        cosine = float(F.cosine_similarity(task, expected, dim=0))
        assert found[f"forces/cosine{end}"] == pytest.approx(cosine, abs=1e-6)


def test_terms_are_named_by_the_labels_of_the_treatment() -> None:
    terms = "balance.terms=[{scope:global},{scope:micro,weight:0.01,start:5,ramp:3}]"
    objective = make_objective(Composer().compose([terms]), ["one"])
    assert [term.name for term in objective.terms] == ["global", "0.01 micro from 5 ramp 3"]


def test_no_balance_term_has_no_force() -> None:
    model, step = model_of(FP64), a_step()
    assert list(forces(model, Objective((), micro_bsz=2), step, [])) == ["forces/cross_entropy"]


@pytest.mark.parametrize(
    "words",
    [
        *(f"router.gate={gate}" for gate in GATES if gate != "topk_softmax"),  # it is refused
        *("router=softmax_raw", "router=random", "router.expert_groups=4", "router=capacity"),
        *("method=bias", "method=quantile_logits", "method=sinkhorn", "method=base"),
    ],
)
def test_a_single_expert_leaves_the_router_the_gradient_of_the_loss(words: str) -> None:
    """With `model.top_k=1`, a weight that is scaled to sum to 1 would be 1 whatever the logits."""
    usual = ["model=smoke", "model.top_k=1", "train.precision=fp64", "loss.balance=0"]
    config = Composer().compose([*usual, *words.split()])
    model, objective = make_model(config, 16), make_objective(config, ["one"])
    step = Step(a_step().tokens, 8, draws=True)
    found = forces(model, objective, step, initial_states(objective, model, step))
    assert found["forces/cross_entropy"] > 1e-3


@pytest.mark.parametrize("estimator", [Estimator(), Estimator("ema", decay=0.5)])
def test_forces_leave_no_trace(estimator: Estimator) -> None:
    objective = Objective((Term(Micro(2), 0.3),), micro_bsz=2, estimator=estimator)
    step = a_step(device_bsz=4)

    def second(look: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = copy.deepcopy(model_of(torch.float32))
        model.zero_grad()
        outcome = accumulate_gradients(model, objective, step)
        if look:
            forces(model, objective, step, outcome.states)
        kept = [each.grad.clone() for each in model.parameters() if each.grad is not None]
        after = accumulate_gradients(model, objective, step, outcome.states)
        grads = [each.grad for each in model.parameters() if each.grad is not None]
        carried = [each for state in after.states if state is not None for each in state]
        return [*kept, *grads, *carried, torch.get_rng_state()]

    for one, other in zip(second(True), second(False), strict=True):
        assert torch.equal(one, other)

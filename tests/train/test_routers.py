"""Routers and methods in whole steps and whole runs: splits, ranks, states, evaluation, resume."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from moebench.balance import Global, Schedule, Term
from moebench.balance.bias import Bias
from moebench.config.compose import Composer
from moebench.data.corpus import prepare
from moebench.experiment import run_experiment
from moebench.model.router import Gating
from moebench.train.gradients import accumulate_gradients, estimator_error
from moebench.train.step import Objective, Step, initial_states, steering_after
from tests.results import stopped
from tests.train.routers import (
    BOUND,
    CASES,
    LENGTH,
    MICRO,
    SEQUENCES,
    Case,
    error,
    measure_on_ranks,
    model_of,
    reference,
    run,
)

COMPOSER = Composer()
SIZES = ("model=smoke", "global_bsz=16", "seq_len=32", "data.valid_sequences=4", "run.device=cpu")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("device_bsz", "reverse"), [(4, False), (2, True)])
def test_no_split_changes_a_gradient_or_a_state(name: str, device_bsz: int, reverse: bool) -> None:
    assert error(run(CASES[name], device_bsz, None, reverse), reference(name)) < BOUND


@cache
def on_two_ranks() -> dict[str, float]:
    return measure_on_ranks(2)


@pytest.mark.parametrize("name", CASES)
def test_no_number_of_ranks_changes_a_gradient_or_a_state(name: str) -> None:
    assert on_two_ranks()[name] < BOUND


def one_step() -> Step:
    tokens = torch.randint(
        0, 16, (SEQUENCES, LENGTH + 1), generator=torch.Generator().manual_seed(1)
    )
    return Step(tokens, MICRO, draws=True)


def test_a_counting_pass_has_the_draws_of_the_training_pass() -> None:
    model = model_of(Gating(noise=1.0, jitter=0.3))
    what = Objective((Term(Global(), 1.0),), MICRO)
    outcome = accumulate_gradients(model, what, one_step())
    # if the counts are those of the training pass, f and P are those of the whole step
    f = outcome.routing.counts.sum(1).double()
    f = f / f.sum(-1, keepdim=True)
    p = outcome.routing.prob_mass.sum(1) / (SEQUENCES * LENGTH)
    assert outcome.balance[0][1] == pytest.approx(float((8 * (f * p).sum(-1)).mean()), rel=1e-6)


def test_measuring_and_evaluating_change_no_state() -> None:
    model = model_of(Gating())
    what = Objective((Term(Global(), 1.0),), MICRO, methods=(Bias(0.1),))
    states = initial_states(what, model, one_step())
    estimator_error(model, what, one_step(), states)
    steering = steering_after(what, model, states)
    model(one_step().tokens, steering)
    assert (states[1].expert_bias == 0).all()
    after = accumulate_gradients(model, what, one_step(), states).states
    assert (states[1].expert_bias == 0).all()
    assert (after[1].expert_bias != 0).any()


def test_a_bias_balances_the_experts_of_a_schedule() -> None:
    model = model_of(Gating("sigmoid"))
    what = Objective((), MICRO, methods=(Bias(0.02), Schedule(2, start=4, full_at=10**9)))
    states, step, worst = None, one_step(), []
    for _ in range(120):
        outcome = accumulate_gradients(model, what, step, states)
        states = outcome.states
        load = outcome.routing.counts.sum(1).double()
        assert (load[:, 4:] == 0).all()
        worst.append(float((load.amax(-1) / (SEQUENCES * LENGTH * 2 / 4) - 1).max()))
    assert worst[0] > 0.4
    assert worst[-1] < 0.15


def compose(folder: Path, *overrides: str):
    more = ("train.steps=6", "run.threads=1", "data=folder", f"data.path={folder}")
    return COMPOSER.compose([*SIZES, *more, *overrides])


RESUMED = ["method=bias", "router.noise=0.5", "router.start_experts=3", "router.prune_below=0.5"]


def test_a_resumed_run_continues_bit_for_bit(text_folder: Path, tmp_path: Path) -> None:
    more = ("router.prune_every=2", "balance.estimator=ema", "loss.balance=0.1")
    config = compose(text_folder, *RESUMED, *more)
    corpus = prepare(config.data)
    whole = run_experiment(config, corpus, tmp_path / "whole")
    stopped(config, corpus, tmp_path / "cut", step=3)
    resumed = run_experiment(config, corpus, tmp_path / "cut", resume=True)
    for name in ("model", "optimizer", "balance"):
        one, other = (
            load_file(each.path / "checkpoints" / "step-6" / f"{name}.safetensors")
            for each in (whole, resumed)
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert "2/expert_bias" not in one  # terms come first: the bias is the second state
    assert {"1/expert_bias", "2/active"} <= one.keys()


def test_the_active_experts_of_a_schedule_are_recorded(text_folder: Path, tmp_path: Path) -> None:
    config = compose(
        text_folder,
        *("router.start_experts=2", "router.full_at=4", "train.eval_every=2", "run.log_every=1"),
    )
    record = run_experiment(config, prepare(config.data), tmp_path)
    rows = {row["step"]: row for row in record.rows()}
    assert [rows[step]["method/active_experts"] for step in (1, 2, 3, 4, 6)] == [3, 5, 6, 8, 8]
    for step, active in ((0, 2), (2, 5), (4, 8)):
        with np.load(record.path / "routing" / f"step-{step}.npz") as found:
            assert found["active"].sum(-1).tolist() == [active, active]
            assert (found["counts"].sum(1)[:, active:] == 0).all()


def test_a_dense_model_trains_and_has_no_metrics_of_experts(
    text_folder: Path, tmp_path: Path
) -> None:
    config = compose(text_folder, "model.moe=false")
    summary = run_experiment(config, prepare(config.data), tmp_path).summary()
    assert summary["arm"] == "dense"
    assert summary["valid/nats"] > 0
    assert not [key for key in summary if key.startswith(("load/", "router/", "specialization/"))]


def test_dropped_assignments_are_recorded(text_folder: Path, tmp_path: Path) -> None:
    config = compose(text_folder, "router=capacity", "router.capacity_factor=0.5")
    record = run_experiment(config, prepare(config.data), tmp_path)
    assert 0.5 <= record.summary()["load/drop_rate"] < 1
    by_chance = record.manifest()["random_load"]["micro"]["drop_rate"]
    assert by_chance == pytest.approx(0.5, abs=0.02), "random routing fills every expert"


def test_pruned_experts_never_come_back() -> None:
    method = Schedule(2, prune_below=0.5, prune_every=2)
    case = Case(methods=(method,))
    state = method.begin(1, 4)
    routing = accumulate_gradients(model_of(case.gating), Objective((), MICRO), one_step()).routing
    early, late = [8, 8, 3, 1], [9, 8, 1, 0]
    for counts, expected in (
        (early, [1, 1, 1, 1]),  # checked every two steps
        (early, [1, 1, 1, 0]),
        (late, [1, 1, 1, 0]),
        (late, [1, 1, 0, 0]),
    ):
        state = method.update(state, routing._replace(counts=torch.tensor([[counts]])))
        assert state.active[0].int().tolist() == expected
    for _ in range(4):  # top_k experts always stay
        state = method.update(state, routing._replace(counts=torch.tensor([[[9, 0, 0, 0]]])))
    assert state.active[0].int().tolist() == [1, 1, 0, 0]

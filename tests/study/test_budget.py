"""What a sweep will take, and the seeds that fit into some hours."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import pytest

from moebench.config.compose import Composer, from_dict
from moebench.config.cost import training_flops
from moebench.data.corpus import prepare
from moebench.errors import ConfigError
from moebench.plans import Job
from moebench.study import allowance, make_plan
from moebench.study.allowance import Allowance
from moebench.study.budget import Budget, Range, lines
from moebench.study.calibration import LEAST_STEPS, MOST_STEPS, calibrate

Small = Callable[..., list[str]]


def test_totals_are_counted_and_the_time_is_measured(small: Small) -> None:
    words = small("scope=micro,global", "model.expert_dim=32,64", "train.steps=20", "seed=0,1")
    plan = make_plan(Composer(), words)
    configs = [from_dict(job.config) for job in plan.jobs]
    budget = Budget(plan.jobs, workers=1, seconds=0.1)
    totals = budget.totals(plan.jobs)
    assert totals[:4] == (4, 8, 8, 8 * 20 * 8 * 32)
    flops = [training_flops(each, prepare(each.data).vocab_size) for each in configs]
    assert totals.flops == sum(flops) * 20 * 8 * 32
    assert totals.shapes == 2, "the scope changes no time"
    assert 0 < totals.seconds.low <= totals.seconds.middle <= totals.seconds.high
    one = budget.totals(plan.jobs[:1])
    assert totals.seconds.middle > 4 * one.seconds.middle
    budget.workers = 8
    assert budget.totals(plan.jobs).seconds.middle < 4 * one.seconds.middle
    assert budget.totals([]).seconds == (0, 0, 0)
    assert lines(budget.totals([]), 1) == ["nothing is left to train"]
    first, second = lines(totals, 1)
    assert first.startswith("to train: 4 arms, 8 runs, 8 processes, 1 at a time; 41 k tokens, ")
    assert second.startswith("time here: about ")


def test_a_large_model_is_timed_by_one_step(small: Small) -> None:
    plan = make_plan(Composer(), small("seed=0,1", "train.steps=20"))
    [config, _] = [from_dict(job.config) for job in plan.jobs]
    corpus = prepare(config.data)
    made = calibrate([config], corpus, seconds=0.0)
    assert len(made.steps) == 1
    assert made.evaluation == pytest.approx(made.steps[0] * 2 * 3 * 4 / (3 * 8))
    assert LEAST_STEPS <= len(calibrate([config], corpus, seconds=5.0).steps) <= MOST_STEPS


def test_stacks_are_those_of_the_launcher(small: Small) -> None:
    plan = make_plan(Composer(), small("scope=micro,global,none", "seed=0", "train.steps=20"))
    budget = Budget(plan.jobs, 1, stack_size=lambda _: 2, seconds=0.1)
    stacks = budget.processes(plan.jobs)
    assert [[job.arm for job in stack] for stack in stacks] == [["micro", "global"], ["none"]]
    assert budget.totals(plan.jobs).stacks == 2


def test_a_machine_without_a_gpu_estimates_for_one_that_has_it(small: Small) -> None:
    words = small("seed=range(0,64)", "train.steps=20", "run.device=cuda", "run.experts=triton")
    words += ["optim.lr=1e30", "loss.balance=1e30"]  # nor does it matter that a run would fail
    plan = make_plan(Composer(), words)
    totals = Budget(plan.jobs, 1, stack_size=lambda _: 64, seconds=0.1).totals(plan.jobs)
    assert (totals.stacks, totals.timed) == (1, 1)
    one = Budget(plan.jobs[:1], 1, seconds=0.1).totals(plan.jobs[:1])
    assert totals.seconds.middle > 5 * one.seconds.middle, "it trains one run after another"


class Hourly:
    """A budget in which every job takes an hour, one at a time."""

    def seconds(self, process: Sequence[Job]) -> Range:
        return self.makespan(process)

    def makespan(self, jobs: Iterable[Job]) -> Range:
        return Range(*[3600.0 * len(list(jobs))] * 3)


def job(number: int) -> Job:
    return Job(number, f"run-{number}", "arm", "0", number // 2, (), {})


JOBS = [job(number) for number in range(6)]  # two arms, three seeds


def allowed(hours: float, jobs: Sequence[Job] = JOBS) -> Allowance:
    return Allowance(hours, cast(Any, Hourly()), jobs)


def test_hours_are_spent_on_whole_seeds() -> None:
    for hours, runs in ((2.5, 2), (3.9, 2), (4.1, 4), (7, 6)):
        assert [job.id for job in allowed(hours).jobs] == list(range(runs))
    assert allowed(1.5, JOBS[1:]).jobs == [JOBS[1]], "the rest of a seed that was begun"
    assert allowed(1, []).jobs == []
    with pytest.raises(ConfigError) as caught:
        allowed(1.9)
    assert str(caught.value) == (
        "--hours 1.9: the 2 runs of a seed take about 2 hours here; allow more, or sweep over "
        "fewer arms"
    )


def test_a_seed_that_would_end_too_late_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(allowance.time, "monotonic", lambda: now[0])
    given = allowed(6.5)
    assert len(given.jobs) == 6
    assert given.still_fitting([], JOBS, {}) == JOBS
    now[0] = 3600
    assert given.still_fitting(JOBS[1:2], JOBS[2:], {0: 3600.0}) == JOBS[2:], "as planned"
    now[0] = 2 * 3600
    assert given.still_fitting(JOBS[1:2], JOBS[2:], {0: 7200.0}) == [], "half as fast"
    now[0] = 6 * 3600
    done = dict.fromkeys(range(4), 3600.0)
    assert given.still_fitting(JOBS[4:5], JOBS[5:], done) == JOBS[5:], "a begun seed is completed"

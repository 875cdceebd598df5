"""A batch on another machine: its records say what became of it, and its engine the rest."""

from pathlib import Path

import pytest

from moebench.plans import Job, Plan
from moebench.records import Record
from moebench.study import Launcher
from moebench.study.engines import Batch, Placed, remote
from moebench.study.engines.commands import Commands
from moebench.study.engines.remote import Remote
from tests.leases import elsewhere
from tests.study.conftest import a_plan


class Far(Remote):
    """A batch whose engine says what a test lets it say."""

    said: str | None = None
    ended: list[bool]

    def word(self) -> str | None:
        return self.said

    def cancel(self, *, force: bool) -> None:
        self.__dict__.setdefault("ended", []).append(force)


@pytest.fixture
def plan() -> Plan:
    return a_plan(2)


@pytest.fixture
def batch(plan: Plan, tmp_path: Path) -> Far:
    return Far(tmp_path, plan.jobs[:1])


def begin(record: Record, state: str, **more: object) -> None:
    record.begin("a: 1", {})
    record.set_status(state, **{"step": 3, **more})


def test_what_is_done_has_ended_whatever_the_engine_says(batch: Far, tmp_path: Path) -> None:
    record = batch._record(batch.jobs[0])
    assert not batch.has_ended()
    begin(record, "done")
    record.seal({})
    assert batch.has_ended()


def test_a_job_that_says_why_is_quoted(batch: Far) -> None:
    [job] = batch.jobs
    begin(batch._record(job), "failed", reason="step 4: the loss is nan")
    batch.said = ""
    assert batch.has_ended()
    assert batch.reason_unfinished(job) == "step 4: the loss is nan"


def test_a_job_that_cannot_say_why_has_the_word_of_its_engine(batch: Far) -> None:
    [job] = batch.jobs
    record = batch._record(job)
    begin(record, "running")
    batch.said = "SLURM job 7 is NODE_FAIL"
    assert batch.has_ended()
    assert batch.reason_unfinished(job) == "SLURM job 7 is NODE_FAIL"
    status = record.status()
    assert (status["state"], status["reason"], status["step"]) == (
        *("failed", "SLURM job 7 is NODE_FAIL"),
        3,
    )
    assert batch.moved(job)


def test_a_job_without_a_record_has_the_reason_that_its_worker_gave(batch: Far) -> None:
    [job] = batch.jobs
    batch.said, batch.reasons = "", {job.id: "ImportError: no torch"}
    assert batch.has_ended()
    assert batch.reason_unfinished(job) == "ImportError: no torch"


def test_an_older_failure_is_not_quoted(plan: Plan, tmp_path: Path) -> None:
    [job] = plan.jobs[:1]
    record = Record(tmp_path / job.run)
    begin(record, "failed", reason="yesterday")
    batch = Far(tmp_path, (job,))
    batch.said = ""
    assert batch.has_ended()
    assert batch.reason_unfinished(job) == "its process ended without a message"
    assert not batch.moved(job)


def test_the_owner_of_a_lease_is_awaited_though_the_engine_has_given_up(
    batch: Far, tmp_path: Path
) -> None:
    batch.said = "SLURM job 7 is NODE_FAIL"
    with elsewhere(tmp_path / ".locks" / f"{batch.jobs[0].run}.lock"):
        assert not batch.has_ended()
    assert batch.has_ended()


def test_a_batch_that_does_not_end_is_killed_and_then_given_up(
    batch: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch.end()
    assert not batch.has_ended()
    monkeypatch.setattr(remote, "PATIENCE", -1.0)
    assert batch.has_ended()
    assert batch.ended == [False, True]
    assert batch.reason_unfinished(batch.jobs[0]).startswith("stopped with the sweep")


class Fars(Commands):
    """An engine that keeps what it is given, as one that a sweep left does."""

    def __init__(self, kept: list[Placed]) -> None:
        super().__init__()
        self.poll, self.kept, self.given = 0.0, kept, []

    def running(self, jobs: object) -> list[Placed]:
        return self.kept

    def start(self, batches: list[Batch]) -> list[Placed]:  # pyright: ignore
        self.given += batches
        return []


def test_a_sweep_that_comes_back_hands_in_what_nobody_has(
    plan: Plan, batch: Far, tmp_path: Path
) -> None:
    engine = Fars([batch])
    launcher = Launcher(plan, tmp_path, engine)  # pyright: ignore
    assert launcher.leave() == [batch]
    assert engine.given == [(plan.jobs[1],)]


class Again(Far):
    """A batch that its engine has lost."""

    def goes_again(self, job: Job) -> bool:
        return True


def test_a_job_that_its_engine_lost_is_handed_in_again(plan: Plan, tmp_path: Path) -> None:
    lost = Again(tmp_path, plan.jobs)
    lost.said = "SLURM job 7 is PREEMPTED"
    engine = Fars([lost])
    launcher = Launcher(plan, tmp_path, engine)  # pyright: ignore
    assert len(list(launcher.run())) > 1
    assert engine.given == [(plan.jobs[0],), (plan.jobs[1],)]
    assert launcher.failed == []

"""The status of the runs of a plan, from their files and locks."""

import signal
from pathlib import Path

import pytest

from moebench.errors import Stopped
from moebench.lock import hold, is_held
from moebench.records import Record
from moebench.study.status import GONE, current_status, run_statuses, seconds_left
from tests.study.conftest import a_plan


def test_a_run_is_running_exactly_while_its_lock_is_held(tmp_path: Path) -> None:
    record = Record(tmp_path / "arm-s0-0")
    assert current_status(record) == {"state": "waiting", "step": 0}
    with hold(record):
        assert is_held(record)
        assert current_status(record) == {"state": "running", "step": 0}, "it wrote no status yet"
        record.begin("a: 1", {})
        record.set_status("running", step=3, seconds=6.0)
        assert current_status(record)["seconds"] == 6.0
    assert not is_held(record)
    status = current_status(record)
    assert (status["state"], status["step"], status["reason"]) == ("stopped", 3, GONE)
    record.set_status("failed", step=3, reason="no")
    assert current_status(record)["reason"] == "no"
    with hold(record):
        assert current_status(record) == {"state": "running", "step": 3}, "it is tried again"
    record.seal({})
    assert current_status(record)["state"] == "done"


def test_a_run_that_was_stopped_goes_on_with_its_sweep(tmp_path: Path) -> None:
    plan = a_plan(1)
    record = Record(tmp_path / plan.jobs[0].run)
    record.begin("a: 1", {})
    record.set_status("stopped", step=3, reason=str(Stopped(record.path, 3, signal.SIGINT)))
    [run] = run_statuses(plan, tmp_path)
    assert run.reason == "stopped by SIGINT at step 3; the same sweep continues"


def test_reading_the_status_writes_nothing(tmp_path: Path) -> None:
    plan = a_plan(3)
    runs = tmp_path / "runs"
    assert {run.state for run in run_statuses(plan, runs)} == {"waiting"}
    assert not runs.exists()
    with hold(Record(runs / plan.jobs[0].run)):
        before = [(path, path.stat().st_mtime_ns) for path in runs.rglob("*")]
        assert [run.state for run in run_statuses(plan, runs)] == [
            "running",
            "waiting",
            "waiting",
        ]
        assert before == [(path, path.stat().st_mtime_ns) for path in runs.rglob("*")]


def test_the_time_left_is_estimated_from_the_steps_done(tmp_path: Path) -> None:
    plan = a_plan(4)  # of six steps
    records = [Record(tmp_path / job.run) for job in plan.jobs]
    assert seconds_left(run_statuses(plan, tmp_path)) is None
    with hold(records[0]), hold(records[1]):
        for record, step, seconds in zip(records, (3, 2, 6), (30.0, 10.0, 60.0), strict=False):
            record.begin("a: 1", {})
            record.set_status("running" if step < 6 else "done", step=step, seconds=seconds)
        records[2].seal({})
        runs = run_statuses(plan, tmp_path)
        assert [run.seconds_left for run in runs] == [30.0, 20.0, None, None]
        # the last run at the mean speed, 25/3 seconds a step, and two runs at a time
        assert seconds_left(runs) == pytest.approx((30 + 20 + 6 * 25 / 3) / 2)
    records[0].seal({})
    records[1].seal({})
    assert seconds_left(run_statuses(plan, tmp_path)) is None, "nothing runs"

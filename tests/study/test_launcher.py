"""The launcher and its processes: no process stops another."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moebench.lock import hold
from moebench.records import Record
from moebench.study import Launcher, Plan
from moebench.study.engines.local import Local
from moebench.study.job import LOCKED, LOST, Attempt
from moebench.study.status import last_status
from tests.calls import is_running
from tests.processes import is_alive, until
from tests.study.conftest import DONE, Script, a_plan


@pytest.fixture
def launch(tmp_path: Path) -> Callable[..., Launcher]:
    def made(plan: Plan, workers: int = 2) -> Launcher:
        plan.write(tmp_path / "runs")
        launcher = Launcher(plan, tmp_path / "runs", Local(workers))
        for _ in launcher.run():
            assert len(launcher.running) <= workers
        return launcher

    return made


Launch = Callable[..., Launcher]


def test_every_job_runs_once_and_in_order(script: Script, launch: Launch, tmp_path: Path) -> None:
    script.write(DONE + "open(plan.parents[3] / 'order', 'a').write(f'{number} ')")
    launcher = launch(a_plan(5), 1)
    assert (tmp_path / "order").read_text() == "0 1 2 3 4 "
    assert launcher.failed == launcher.running == launcher.waiting == []
    assert launch(a_plan(5), 1).failed == []
    assert (tmp_path / "order").read_text() == "0 1 2 3 4 ", "what is done is left as it is"
    (tmp_path / "runs" / "arm-s3-0" / "manifest.json").write_text("{}")
    (tmp_path / "runs" / "arm-s4-0" / "summary.json").write_text("{}")
    [changed, forged] = launch(a_plan(5), 1).failed
    assert "arm-s3-0/manifest.json: was changed after the run; restore it, or" in changed[1]
    assert "arm-s4-0: is a record of version None" in forged[1]
    assert (tmp_path / "order").read_text() == "0 1 2 3 4 ", "nothing is trained over them"


@pytest.mark.parametrize(
    ("end", "reason", "state"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by signal 9 (Killed)", "failed"),
        ("os.kill(os.getpid(), signal.SIGRTMIN + 1)", "killed by signal 35 (", "failed"),
        ("os.abort()", "killed by signal 6 (Aborted)", "failed"),
        ("say('running'); os.kill(os.getpid(), 9)", "killed by signal 9 (Killed)", "failed"),
        ("raise SystemError('in C')", "SystemError: in C", "failed"),
        ("print('error: a: b; c'); sys.exit(2)", "a: b; c", "failed"),
        ("sys.exit(5)", "exit code 5", "failed"),
        ("pass", "exit code 0", "failed"),
        ("print('\\x1b[31m', flush=True); os._exit(1)", "�[31m", "failed"),
        ("say('failed', reason='step 3: nan')", "step 3: nan", "failed"),
        ("say('stopped', reason='by SIGTERM')", "by SIGTERM", "stopped"),
        ("say('failed', pid=1, reason='earlier'); os.kill(os.getpid(), 9)", "killed by", "failed"),
    ],
)
def test_a_job_that_fails_does_not_stop_the_others(
    script: Script, launch: Launch, end: str, reason: str, state: str
) -> None:
    script.write(f"if number == 1:\n    say('waiting')\n    {end}\nelse:\n    {DONE}")
    launcher = launch(a_plan(4))
    [(job, said)] = launcher.failed
    assert job.id == 1
    assert said.startswith(reason)
    status = launcher.record(job).status()
    assert (status["state"], status["reason"]) == (state, said)
    assert all(launcher.record(other).is_done() for other in launcher.plan.jobs if other.id != 1)


def test_a_job_that_never_started_leaves_no_record(script: Script, launch: Launch) -> None:
    script.write("os.kill(os.getpid(), signal.SIGKILL)")
    launcher = launch(a_plan(1))
    assert launcher.failed[0][1] == "killed by signal 9 (Killed)"
    assert not launcher.record(launcher.plan.jobs[0]).path.exists()


def begun(launcher: Launcher, polls: Iterator[None]) -> list[int]:
    """The process ids of two running jobs."""
    records = [launcher.record(job) for job in launcher.plan.jobs[:2]]
    while not all(last_status(record)["state"] == "running" for record in records):
        next(polls)
    return [record.status()["pid"] for record in records]


@pytest.mark.parametrize(
    "handler",
    [
        "lambda *_: (say('stopped', reason='at a step'), sys.exit(75))",
        "signal.SIG_DFL",
        "signal.SIG_IGN",
    ],
)
def test_closing_a_launcher_ends_its_processes_and_records_it(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handler: str
) -> None:
    monkeypatch.setattr("moebench.study.job.GRACE", 0.5)
    script.write(f"signal.signal(signal.SIGTERM, {handler})\nsay('running')\ntime.sleep(60)")
    plan = a_plan(3)
    plan.write(tmp_path / "runs")
    launcher = Launcher(plan, tmp_path / "runs", Local(2))
    with closing(launcher.run()) as polls:
        pids = begun(launcher, polls)
    assert not any(map(is_alive, pids))
    states = [launcher.record(job).status() for job in plan.jobs]
    assert [status["state"] for status in states] == ["stopped", "stopped", "waiting"]
    assert all(status["reason"] for status in states[:2])
    assert launcher.failed == []


# Heartbeats and timeout


class Clock:
    """Replaces `time` in the launcher with a clock that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("moebench.study.job.time", made)
    return made


@pytest.fixture
def start(script: Script, tmp_path: Path, clock: Clock) -> Iterator[Callable[[str], Attempt]]:
    """Start a job that runs `code` and then hangs, with a timeout of 60 seconds."""
    made = []

    def started(code: str) -> Attempt:
        script.write(f"{code}\nsay('running')\nwhile True: time.sleep(60)")
        plan = a_plan(1)
        made.append(Attempt(plan.write(tmp_path / "runs"), plan.jobs[0], timeout=60))
        until(lambda: last_status(made[0].record)["state"] == "running")
        return made[0]

    yield started
    for attempt in made:
        attempt.kill()


def test_a_run_without_a_step_for_too_long_is_ended(
    start: Callable[[str], Attempt], clock: Clock
) -> None:
    attempt = start("signal.signal(signal.SIGUSR2, lambda *_: print('asleep here', flush=True))")
    for step in range(1, 5):
        clock.now += 59
        attempt.record.set_status("running", step=step, seconds=2.5)
        assert not attempt.has_ended()
    clock.now += 60
    assert not attempt.has_ended()
    clock.now += 1
    assert not attempt.has_ended()
    until(lambda: attempt.log.read_text() == "asleep here\n")
    until(attempt.has_ended)
    reason = attempt.reason_unfinished()
    assert reason == (
        f"completed no step for 60 s (--timeout) after step 4; {attempt.log} shows where it hung"
    )
    status = attempt.record.status()
    assert (status["state"], status["reason"]) == ("failed", reason)
    assert (status["step"], status["seconds"]) == (4, 2.5), "what it had said is kept"


def test_a_run_that_hangs_and_ignores_signals_is_killed_with_its_children(
    start: Callable[[str], Attempt], clock: Clock, tmp_path: Path
) -> None:
    attempt = start(
        "import subprocess\n"
        "for number in (signal.SIGTERM, signal.SIGUSR2): signal.signal(number, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "Path('child').write_text(str(child.pid))"
    )
    clock.now = 61
    for _ in range(3):
        assert not attempt.has_ended(), "it has time to save a checkpoint"
        time.sleep(0.1)
    clock.now += 31
    until(attempt.has_ended)
    assert attempt.process.exitcode == -signal.SIGKILL
    until(lambda: not is_running(int((tmp_path / "child").read_text())))
    assert attempt.reason_unfinished().startswith(
        "completed no step for 60 s (--timeout) after step 1; "
    )


def test_a_hung_run_does_not_stop_the_others(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moebench.study.job.GRACE", 0.5)
    script.write(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"if number == 1:\n    say('running')\n    time.sleep(600)\n{DONE}"
    )
    plan = a_plan(3)
    plan.write(tmp_path / "runs")
    launcher = Launcher(plan, tmp_path / "runs", Local(1, timeout=3))
    for _ in launcher.run():
        pass
    [(job, reason)] = launcher.failed
    assert job.id == 1
    assert reason.startswith("completed no step for 3 s (--timeout) after step 1; ")
    assert [launcher.record(job).is_done() for job in plan.jobs] == [True, False, True]


# Runs of other processes


@pytest.fixture
def shared(script: Script, tmp_path: Path) -> Launcher:
    """A launcher of two jobs that both finish immediately."""
    script.write(DONE + "open(plan.parents[3] / 'order', 'a').write(f'{number} ')")
    plan = a_plan(2)
    plan.write(tmp_path / "runs")
    return Launcher(plan, tmp_path / "runs", Local(1))


def until_alone(launcher: Launcher, polls: Iterator[None]) -> None:
    """Run until only the job of another process is left."""
    while launcher.waiting or launcher.running:
        next(polls)
    [other] = launcher.elsewhere
    assert other.job.id == 0


def test_the_launcher_waits_for_a_run_of_another_process(shared: Launcher, tmp_path: Path) -> None:
    record = shared.record(shared.plan.jobs[0])
    polls = shared.run()
    with hold(record):
        until_alone(shared, polls)
        next(polls)
        record.begin("a: 1", {})
        record.seal({})
    assert list(polls)
    assert (shared.failed, shared.elsewhere) == ([], [])
    assert (tmp_path / "order").read_text() == "1 ", "the other one was not done again"


def test_the_launcher_continues_a_run_that_another_process_left(
    shared: Launcher, tmp_path: Path
) -> None:
    record = shared.record(shared.plan.jobs[0])
    polls = shared.run()
    with hold(record):
        until_alone(shared, polls)
        record.begin("a: 1", {})
        record.set_status("stopped", step=3, reason="stopped by SIGTERM")
    assert list(polls)
    assert shared.failed == []
    assert (tmp_path / "order").read_text() == "1 0 "


def test_a_run_that_failed_elsewhere_counts_as_failed(shared: Launcher, tmp_path: Path) -> None:
    record = shared.record(shared.plan.jobs[0])
    record.begin("a: 1", {})
    record.set_status("failed", step=1, reason="an older failure")
    polls = shared.run()
    with hold(record):
        until_alone(shared, polls)
        record.set_status("failed", step=3, reason="step 4: the loss is nan")
    assert list(polls)
    assert [reason for _, reason in shared.failed] == ["step 4: the loss is nan"]
    assert (tmp_path / "order").read_text() == "1 "


def test_a_run_that_failed_earlier_is_tried_again(shared: Launcher, tmp_path: Path) -> None:
    record = shared.record(shared.plan.jobs[0])
    record.begin("a: 1", {})
    record.set_status("failed", step=1, reason="an older failure")
    polls = shared.run()
    with hold(record):
        until_alone(shared, polls)
    assert list(polls)
    assert shared.failed == []
    assert (tmp_path / "order").read_text() == "1 0 "


def test_a_job_that_another_process_starts_at_the_same_time_is_no_failure(
    script: Script, launch: Launch, tmp_path: Path
) -> None:
    script.write(
        "first = not Path('seen').exists(); Path('seen').touch()\n"
        f"if first: say('running', pid=1); sys.exit({LOCKED})\n{DONE}"
    )
    launcher = launch(a_plan(1))
    assert (launcher.failed, launcher.elsewhere, launcher.waiting) == ([], [], [])
    assert launcher.record(launcher.plan.jobs[0]).is_done()


def test_the_status_of_a_run_that_another_process_took_over_is_left_alone(
    script: Script, tmp_path: Path
) -> None:
    script.write("os.kill(os.getpid(), 9)")
    plan = a_plan(1)
    attempt = Attempt(plan.write(tmp_path / "runs"), plan.jobs[0])
    until(attempt.has_ended)
    attempt.record.begin("a: 1", {})
    attempt.record.set_status("running", step=5)
    with hold(attempt.record):
        assert attempt.reason_unfinished() == "killed by signal 9 (Killed)"
        assert attempt.record.status()["state"] == "running"


def test_a_job_that_cannot_be_started_is_a_failure(
    script: Script, launch: Launch, tmp_path: Path
) -> None:
    script.write(DONE)
    plan = a_plan(2)
    logs = plan.path(tmp_path / "runs").parent / "logs"
    (logs / f"{plan.jobs[0].run}.log").mkdir(parents=True)
    launcher = launch(plan)
    [(job, reason)] = launcher.failed
    assert job.id == 0
    assert reason.startswith("cannot be started ([Errno 21] Is a directory: ")
    assert launcher.record(plan.jobs[1]).is_done()


def test_a_status_that_cannot_be_written_is_reported(
    script: Script, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Record, "set_status", full)
    script.write("say('running'); sys.exit(5)")
    [(_, reason)] = launch(a_plan(1)).failed
    assert reason == "exit code 5; its status cannot be written (No space left on device)"


def test_a_process_whose_server_has_ended_is_awaited(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`multiprocessing` no longer knows its exit code then, and says 255 at once."""
    script.write("time.sleep(60)")
    plan = a_plan(1)
    started = Attempt(plan.write(tmp_path / "runs"), plan.jobs[0])
    process = started.process
    monkeypatch.setattr(started, "process", SimpleNamespace(exitcode=LOST, pid=process.pid))
    assert not started.has_ended()
    process.kill()
    process.join()
    assert started.has_ended()

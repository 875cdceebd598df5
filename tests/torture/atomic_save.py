"""A fault at each operation on disk of a whole run, one after the other: saves, rows, and the rest.

Two runs are tried: one from its first step, and one that continues. With a checkpoint after every
step, at most one step may be lost.
"""

import errno
import os
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from moebench.disk import read_json
from moebench.records import Record
from tests.processes import Process
from tests.torture.disk import VARIABLE, Disk, Mode
from tests.torture.runs import assert_same, finish, records, reference, room, train
from tests.torture.topic import DEADLINE, Counts, Topic

KIND = "global"
WORDS = ("train.steps=3", "train.eval_every=0")
STOPPED_AT = 2  # where the run was stopped that continues
SCENARIOS = ("begins", "continues")
FAULTS = {
    "killed": (Mode.KILL, 0),
    "EIO": (Mode.FAIL, errno.EIO),
    "ENOSPC": (Mode.FAIL, errno.ENOSPC),
    "torn": (Mode.SHORT, errno.ENOSPC),
}
STOP = f"""
import os, signal
from moebench.experiment.session import Session
record = Session._record
def stopping(self, event, *more):
    if event.step == {STOPPED_AT}:
        os.kill(os.getpid(), signal.SIGTERM)
    record(self, event, *more)
Session._record = stopping
"""


def attempts() -> list[str]:
    """Each operation with each fault that it can have; a write alone can be torn."""
    names = []
    for scenario in SCENARIOS:
        for number, kind in enumerate(operations(scenario), 1):
            faults = [fault for fault in FAULTS if fault != "torn" or kind == "write"]
            names += [f"{scenario} {number} {kind} {fault}" for fault in faults]
    return names


def attempt(name: str, folder: Path) -> Counts:
    """Let one operation of a run fail; the run then continues, and ends as it must."""
    scenario, at, _, fault = name.split()
    reference(KIND, *WORDS)
    runs_dir = folder / "runs"
    _begin(scenario, runs_dir)
    disk = Disk(runs_dir, folder / "disk")
    mode, error = FAULTS[fault]
    process = _train(disk, mode, int(at), error)
    out, errors = process.communicate(DEADLINE)
    assert disk.met, "the operation was not reached"
    assert "Traceback" not in errors, f"a stack trace: {errors}"
    ended, last = process.returncode, _last_step(runs_dir)
    if ended == 1:
        assert out.startswith("error: "), f"no line of an error: {out}"
        assert out.count("\n") == 1, f"more than a line of an error: {out}"
    whole = any(record.is_done() for record in records(runs_dir))
    finish(KIND, runs_dir, *WORDS)
    for record in records(runs_dir):
        resumed = read_json(record.path / "manifest.json").get("resumed", [])
        if ended != 0 and last > 1 and not whole:
            assert resumed[-1]["step"] >= last - 1, f"continued from {resumed[-1]} after {last}"
    assert_same(KIND, runs_dir, *WORDS)
    return {fault: 1, f"of a run that {scenario}": 1}


@cache
def operations(scenario: str) -> Sequence[str]:
    """The kind of each operation of a run, in order."""
    folder = room() / f"operations-{scenario}"
    _begin(scenario, folder / "runs")
    disk = Disk(folder / "runs", folder / "disk", logs=True)
    _, errors = (process := _train(disk, Mode.RECORD)).communicate(DEADLINE)
    assert process.returncode == 0, errors
    return [operation.kind for operation in disk.logged()]


def _train(disk: Disk, mode: Mode, at: int = 0, error: int = 0) -> Process:
    env = {**os.environ, VARIABLE: disk.trouble(mode, at, error)}
    return Process(train, (KIND, str(disk.folder), WORDS), env)


def _begin(scenario: str, runs_dir: Path) -> None:
    """Make the folder as it is when the run begins, or when it continues."""
    if scenario == "begins":
        runs_dir.mkdir(parents=True)
        return
    shutil.copytree(_stopped(), runs_dir)


@cache
def _stopped() -> Path:
    folder = room() / "stopped"
    process = Process(train, (KIND, str(folder), WORDS, STOP))
    out, errors = process.communicate(DEADLINE)
    assert process.returncode == 1, f"{out}{errors}"
    return folder


def _last_step(runs_dir: Path) -> int:
    """The last step whose row is on disk: the step before it was saved."""
    return max((step for record in records(runs_dir) for step in _steps(record)), default=0)


def _steps(record: Record) -> list[int]:
    file = record.path / "metrics.jsonl"
    return [row["step"] for row in record.rows()] if file.exists() else []


TOPIC = Topic(
    "atomic save",
    "Whatever operation on disk fails, is torn or is the last one: the run continues, has lost one "
    "interval between checkpoints at most, and ends as if nothing had happened.",
    attempts,
    attempt,
    short=9,
)

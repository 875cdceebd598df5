"""What became of the runs of a plan, as their files and locks say; looking writes nothing."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from moebench.errors import RecordError
from moebench.lock import is_held
from moebench.plans import Job, Plan
from moebench.records import STATES, Record, printable

QUIET = 60.0  # seconds without a sign of life that are worth a word
GONE = "its process is gone without a word; the same sweep goes on from the last checkpoint"


def last_word(record: Record) -> dict[str, Any]:
    """What a run last said of itself; `waiting` if it said nothing that can be read."""
    try:
        return record.status()
    except RecordError:
        return {"state": "waiting", "step": 0}


def state_of(record: Record) -> dict[str, Any]:
    """The status of a run as it is: running while a process holds it, and only then."""
    held = is_held(record)
    status = last_word(record)  # read after looking: if nobody holds it, no other follows
    if record.is_done():
        return {**status, "state": "done"}
    if held:
        if status["state"] == "running":
            return status
        return {"state": "running", "step": status["step"]}  # it starts, and has said nothing yet
    if status["state"] in ("running", "done"):
        return {**status, "state": "stopped", "reason": GONE}
    return status


def without_run(run: str, reason: str) -> str:
    """A reason without the path of its run, where that is told already."""
    return reason.rpartition(f"{run}: ")[2]


@dataclass(frozen=True)
class RunStatus:
    """One run of a plan.

    Attributes:
        run: name of its record.
        state: one of STATES.
        step, steps: how many steps it has made, of how many.
        seconds: that it took for them; None if it did not say.
        seconds_left: that the others will take at that speed; None unless it is running.
        seconds_quiet: since a running run last ended a step; None for others.
        reason: why it failed or stopped; else None.
    """

    run: str
    arm: str
    seed: int
    state: str
    step: int
    steps: int
    seconds: float | None
    seconds_left: float | None
    seconds_quiet: float | None
    reason: str | None


def look(plan: Plan, runs_dir: Path) -> list[RunStatus]:
    """The status of each run of a plan, in its order."""
    return [_look(job, state_of(Record(runs_dir / job.run))) for job in plan.jobs]


def _look(job: Job, status: dict[str, Any]) -> RunStatus:
    state, step, steps = status["state"], status["step"], job.config["train"]["steps"]
    seconds, heard = _number(status.get("seconds")), _number(status.get("heartbeat"))
    running = state == "running"
    reason = without_run(job.run, str(status.get("reason") or ""))
    return RunStatus(
        run=job.run,
        arm=job.arm,
        seed=job.seed,
        state=state,
        step=steps if state == "done" else step,
        steps=steps,
        seconds=seconds,
        seconds_left=seconds / step * (steps - step) if running and seconds and step else None,
        seconds_quiet=max(0.0, time.time() - heard) if running and heard else None,
        reason=reason if state in ("failed", "stopped") and reason else None,
    )


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def seconds_left(runs: Sequence[RunStatus]) -> float | None:
    """Until all is done, if as many runs go on at a time as now; None if that cannot be told.

    A run that has no speed of its own yet is given the mean of the others.
    """
    running = sum(run.state == "running" for run in runs)
    speeds = [run.seconds / run.step if run.seconds and run.step else None for run in runs]
    known = [speed for speed in speeds if speed]
    if not running or not known:
        return None
    mean = sum(known) / len(known)
    left = [
        (run.steps - run.step) * (speed or mean)
        for run, speed in zip(runs, speeds, strict=True)
        if run.state != "done"
    ]
    return max(sum(left) / running, *left)


def render(plan: Plan, runs: Sequence[RunStatus], console: Console) -> None:
    """Print a line a run, and what they come to."""
    table = Table(box=None, pad_edge=False)
    table.add_column("run", no_wrap=True)
    table.add_column("state")
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("left", justify="right", no_wrap=True)
    table.add_column("", overflow="fold", ratio=1)
    for run in runs:
        said = run.reason or ""
        if run.seconds_quiet is not None and run.seconds_quiet > QUIET:
            said = f"no step since {_clock(run.seconds_quiet)}"
        left = "" if run.seconds_left is None else _clock(run.seconds_left)
        cells = (run.run, run.state, f"{run.step}/{run.steps}", left, said)
        table.add_row(*(Text(printable(cell)) for cell in cells))
    console.print(table)
    found = Counter(run.state for run in runs)
    counts = ", ".join(f"{found[state]} {state}" for state in STATES if found[state])
    left = seconds_left(runs)
    after = "" if left is None else f"; about {_clock(left)} left"
    line = f"{plan.slug}: {counts}{after}"
    console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))

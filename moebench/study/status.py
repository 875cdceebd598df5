"""The status of each run of a plan, read from its files and its lock."""

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

from moebench.errors import CONTINUES, RecordError
from moebench.lock import ENDED, is_held
from moebench.plans import Job, Plan
from moebench.records import STATES, Record, printable

QUIET = 60.0  # seconds without a step after which `render` mentions it
STOPPED = "stopped with the sweep; the same sweep continues it"
GONE = f"{ENDED}; the same sweep continues from the last checkpoint"


def last_status(record: Record) -> dict[str, Any]:
    """The status that a run last wrote; `waiting` if there is none that can be read."""
    try:
        return record.status()
    except RecordError:
        return {"state": "waiting", "step": 0}


def current_status(record: Record) -> dict[str, Any]:
    """The actual status of a run: it is running if and only if a process holds its lock."""
    held = is_held(record)
    status = last_status(record)  # read after the lock: if nobody holds it, this status is final
    if record.is_done():
        try:
            record.refuse_changes(results_only=True)  # asked again and again
        except RecordError as error:
            return {**status, "state": "failed", "reason": str(error)}
        return {**status, "state": "done"}
    if held:
        if status["state"] == "running":
            return status
        return {"state": "running", "step": status["step"]}  # it wrote nothing yet
    if status["state"] in ("running", "done"):
        return {**status, "state": "stopped", "reason": GONE}
    return status


def leave_unfinished(record: Record, job: Job, state: str, reason: str) -> str:
    """Write why a run's process, which did not say so itself, left it unfinished.

    The record of a run that another process trains, or that never began, is left alone.

    Returns:
        The reason, with the error if it cannot be written.
    """
    if record.exists() and not is_held(record):
        status = last_status(record)
        kept = {key: status[key] for key in status.keys() - {"state", "pid", "heartbeat"}}
        steps = job.steps
        try:
            record.set_status(state, **{**kept, "steps": steps, "reason": reason})
        except OSError as error:
            reason += f"; its status cannot be written ({error.strerror})"
    return reason


def in_sweep(run: str, reason: str) -> str:
    """The reason of a run as its sweep gives it: without the path, and with the sweep as remedy."""
    return reason.rpartition(f"{run}: ")[2].replace(CONTINUES, "the same sweep continues")


@dataclass(frozen=True)
class RunStatus:
    """One run of a plan.

    Attributes:
        run: name of its record.
        state: one of STATES.
        step, steps: completed and planned steps.
        seconds: training time so far; None if unknown.
        seconds_left: estimate for the remaining steps; None unless it is running.
        seconds_quiet: since a running run last completed a step; None for others.
        reason: why it failed or stopped; else None.
        differs: the end of `arm` that the name of the record does not tell.
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
    differs: str = ""


def run_statuses(plan: Plan, runs_dir: Path) -> list[RunStatus]:
    """The status of each run of a plan, in its order."""
    return [_run_status(job, current_status(Record(runs_dir / job.run))) for job in plan.jobs]


def _run_status(job: Job, status: dict[str, Any]) -> RunStatus:
    state, step, steps = status["state"], status["step"], job.steps
    seconds, heartbeat = _number(status.get("seconds")), _number(status.get("heartbeat"))
    running = state == "running"
    reason = in_sweep(job.run, str(status.get("reason") or ""))
    return RunStatus(
        run=job.run,
        arm=job.arm,
        seed=job.seed,
        state=state,
        step=steps if state == "done" else step,
        steps=steps,
        seconds=seconds,
        seconds_left=seconds / step * (steps - step) if running and seconds and step else None,
        seconds_quiet=max(0.0, time.time() - heartbeat) if running and heartbeat else None,
        reason=reason if state in ("failed", "stopped") and reason else None,
        differs=job.differs,
    )


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def seconds_left(runs: Sequence[RunStatus]) -> float | None:
    """An estimate until all runs are done, if as many run at a time as now; None if unknown.

    A run without a measured speed is assumed to have the mean speed of the others.
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
    """Print a table with one row per run, and a summary line."""
    table = Table(box=None, pad_edge=False)
    table.add_column("run", no_wrap=True)
    table.add_column("state")
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("left", justify="right", no_wrap=True)
    table.add_column("", overflow="fold", ratio=1)
    for run in runs:
        note = run.reason or ""
        if run.seconds_quiet is not None and run.seconds_quiet > QUIET:
            note = f"no step since {clock(run.seconds_quiet)}"
        note = f"{run.differs}  {note}".strip()
        left = "" if run.seconds_left is None else clock(run.seconds_left)
        cells = (run.run, run.state, f"{run.step}/{run.steps}", left, note)
        table.add_row(*(Text(printable(cell)) for cell in cells))
    console.print(table)
    counter = Counter(run.state for run in runs)
    counts = ", ".join(f"{counter[state]} {state}" for state in STATES if counter[state])
    left = seconds_left(runs)
    after = "" if left is None else f"; about {clock(left)} left"
    line = f"{plan.slug}: {counts}{after}"
    console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


def clock(seconds: float) -> str:
    """Seconds as hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))

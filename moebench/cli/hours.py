"""What a sweep will take on this machine, and the seeds that fit into some hours."""

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from moebench.cli.output import print_message
from moebench.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from moebench.study import Launcher
    from moebench.study.allowance import Allowance
    from moebench.study.budget import Budget, Totals

HOUR = 3600.0


def budget(launcher: "Launcher") -> "Budget":
    """What the jobs that are not done will take here; this times them for a few seconds."""
    from moebench.study.budget import Budget

    return Budget(launcher.waiting, at_once(launcher), launcher.engine.stack_size)


def at_once(launcher: "Launcher") -> int:
    """Processes at a time, if this machine trained all runs."""
    from moebench.machine import usable_cores

    return launcher.engine.room if launcher.engine.worker() is None else usable_cores()


def print_totals(totals: "Totals", launcher: "Launcher", console: "Console") -> None:
    from moebench.study.budget import lines

    for line in lines(totals, at_once(launcher)):
        print_message(line, console)


def as_dict(totals: "Totals") -> dict[str, Any]:
    return {**totals._asdict(), "seconds": totals.seconds._asdict()}


def allow(
    launcher: "Launcher", hours: float, estimate: "Budget", console: "Console"
) -> "Callable[[], None]":
    """Keep the seeds that fit into some hours, and print how many these are.

    Returns:
        A function that leaves out those that fit no longer; to be called while jobs wait.
    """
    from moebench.study.allowance import Allowance

    allowance = Allowance(hours, estimate, launcher.waiting)
    seeds = len({job.seed for job in allowance.jobs}), len({job.seed for job in launcher.waiting})
    launcher.waiting = list(allowance.jobs)
    print_message(f"--hours {hours:g}: {seeds[0]} of {seeds[1]} seeds fit by the estimate", console)
    return partial(_trim, launcher, allowance, {})


def _trim(launcher: "Launcher", allowance: "Allowance", done: dict[int, float]) -> None:
    """Leave out waiting jobs whose seed would no longer end in time.

    Args:
        done: seconds of the jobs that have ended, by id; it is completed.
    """
    from moebench.study.status import last_status

    active = [job for attempt in launcher.running for job in attempt.jobs]
    active += [waiting.job for waiting in launcher.elsewhere]
    known = {job.id for job in (*active, *launcher.waiting)} | done.keys()
    for job in allowance.jobs:
        if job.id not in known and launcher.record(job).is_done():
            done[job.id] = float(last_status(launcher.record(job)).get("seconds", 0.0))
    kept = allowance.still_fitting(active, launcher.waiting, done)
    if left_out := {job.seed for job in launcher.waiting} - {job.seed for job in kept}:
        print_message(f"--hours {allowance.hours:g}: leaves out {len(left_out)} more seeds")
        launcher.waiting = kept


class Timer:
    """The hours of a sweep: whether the seeds of another look still fit.

    Args:
        hours: from now on; None: as many as it takes.
    """

    def __init__(self, hours: float | None) -> None:
        self._hours = hours
        self._end = None if hours is None else time.monotonic() + hours * HOUR
        self._slower, self._estimate = 1.0, 0.0
        self._first = True

    def fits(self, launcher: "Launcher", seeds: int) -> bool:
        """Whether the waiting runs end in time; ConfigError if not even the first look's do."""
        if self._end is None:
            return True
        self._estimate = budget(launcher).makespan(launcher.waiting).middle
        needed = self._slower * self._estimate
        if time.monotonic() + needed <= self._end:
            return True
        about = f"the look at {seeds} seeds takes about {needed / HOUR:.2g} more hours here"
        if self._first:
            raise ConfigError(f"--hours {self._hours:g}: {about}; allow more")
        print_message(f"--hours {self._hours:g}: {about}; the same command trains it later")
        return False

    def took(self, seconds: float) -> None:
        """Learn from the time that the last look took."""
        self._first = False
        self._slower = seconds / self._estimate if self._estimate else 1.0

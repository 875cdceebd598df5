"""Runs the jobs of a plan on this machine, several at a time; other sweeps may run the same."""

import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import NamedTuple

from moebench.config.compose import from_dict
from moebench.config.schema import ExperimentConfig
from moebench.config.stackable import stack_key
from moebench.lock import is_held
from moebench.plans import Job, Plan
from moebench.records import Record
from moebench.study.job import LOCKED, Attempt
from moebench.study.status import last_status

POLL = 0.2  # seconds between polls of the processes


class Elsewhere(NamedTuple):
    """A job whose run another process is training."""

    job: Job
    since: float  # when this was first noticed, in epoch seconds


class LocalLauncher:
    """Runs the jobs of a plan as one-thread processes on this machine, `workers` at a time.

    A process trains a stack of jobs if `stack_size` allows it and their shapes agree. If such a
    process ends early, its jobs run again one by one, so that one job cannot stop the others.

    Iterate over `run()`: it yields after each poll of the processes, so that the caller can show
    progress. Closing it stops them. A job that fails does not stop the others. If another process
    trains a run, the launcher waits, and continues the run if that process leaves it unfinished.

    Args:
        timeout: seconds without a completed step after which a run counts as hung.
        stack_size: how many jobs of a config's shape one process trains at once; None means 1.

    Attributes:
        waiting: jobs that are not started, in the order in which they will start.
        running: the processes of this launcher.
        elsewhere: jobs that run in other processes.
        failed: the jobs that did not finish, each with the reason.
    """

    def __init__(
        self,
        plan: Plan,
        runs_dir: Path,
        workers: int,
        timeout: float | None = None,
        stack_size: Callable[[ExperimentConfig], int] | None = None,
    ) -> None:
        self.plan = plan
        self.runs_dir = runs_dir
        self.workers = workers
        self.timeout = timeout
        self.stack_size = stack_size
        self._alone: set[int] = set()  # jobs whose stack ended early; they run alone
        self.waiting = [job for job in plan.jobs if not self.record(job).is_done()]
        self.running: list[Attempt] = []
        self.elsewhere: list[Elsewhere] = []
        self.failed: list[tuple[Job, str]] = []

    def record(self, job: Job) -> Record:
        return Record(self.runs_dir / job.run)

    def run(self) -> Generator[None]:
        """Run all jobs; yields after each poll."""
        try:
            while self.waiting or self.running or self.elsewhere:
                self._check_elsewhere()
                self._start()
                yield
                time.sleep(POLL)
                for attempt in list(self.running):
                    if attempt.has_ended():
                        self.running.remove(attempt)
                        self._finish(attempt)
            yield
        finally:
            self._end_all()

    def _start(self) -> None:
        """Start waiting jobs while there is a free worker."""
        while self.waiting and len(self.running) < self.workers:
            job = self.waiting.pop(0)
            record = self.record(job)
            if record.is_done():  # by another sweep
                continue
            if is_held(record):
                self.elsewhere.append(Elsewhere(job, time.time()))
                continue
            stacked = self._take_stack(job)
            path = self.plan.path(self.runs_dir)
            try:
                self.running.append(Attempt(path, job, self.timeout, stacked))
            except OSError as error:
                reason = f"cannot be started ({error})"
                self.failed += [(failed, reason) for failed in (job, *stacked)]

    def _take_stack(self, job: Job) -> list[Job]:
        """Remove from the waiting jobs those that one process can train together with `job`."""
        if self.stack_size is None or job.id in self._alone:
            return []
        config = from_dict(job.config)
        key, room = stack_key(config), self.stack_size(config) - 1
        if not room:
            return []
        stacked = [
            other
            for other in self.waiting
            if other.id not in self._alone
            and stack_key(from_dict(other.config)) == key
            and not is_held(self.record(other))
            and not self.record(other).is_done()
        ][:room]
        self.waiting = [other for other in self.waiting if other not in stacked]
        return stacked

    def _finish(self, attempt: Attempt) -> None:
        """Queue again, or record as failed, the jobs that a process left unfinished."""
        for job in reversed(attempt.jobs):
            if self.record(job).is_done():
                continue
            # Another process trains it, or a job of its stack ended the process.
            locked = attempt.process.exitcode == LOCKED and not attempt.reported(job)
            taken_down = len(attempt.jobs) > 1 and not attempt.reported(job)
            if locked or taken_down:
                self.waiting.insert(0, job)
                self._alone.add(job.id)
            else:
                self.failed.append((job, attempt.reason_unfinished(job)))

    def _check_elsewhere(self) -> None:
        """Queue jobs that other processes left unfinished, unless they failed."""
        for item in list(self.elsewhere):
            record = self.record(item.job)
            if is_held(record):
                continue
            self.elsewhere.remove(item)
            status = last_status(record)
            if status["state"] == "failed" and status.get("heartbeat", 0.0) >= item.since:
                self.failed.append((item.job, str(status.get("reason"))))
            elif not record.is_done():
                self.waiting.insert(0, item.job)

    def _end_all(self) -> None:
        """Ask every process to stop at its next step, and kill those that do not stop in time."""
        ending = list(self.running)
        try:
            for attempt in ending:
                attempt.end()
            while not all(attempt.has_ended() for attempt in ending):
                time.sleep(0.05)
        finally:  # a second Ctrl-C kills at once
            for attempt in ending:
                attempt.kill()
                for job in attempt.jobs:
                    if not self.record(job).is_done():
                        attempt.reason_unfinished(job)

"""The jobs of a plan carried out on this machine, some at a time, beside whoever else does so."""

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
from moebench.study.status import last_word

POLL = 0.2  # seconds between looks at the processes


class Elsewhere(NamedTuple):
    """A job whose run another process trains."""

    job: Job
    since: float  # epoch seconds at which that was seen first


class LocalLauncher:
    """Runs the jobs of a plan as one-thread processes on this machine, `workers` at a time.

    A process trains a stack of jobs where `stack_size` says so and their shapes agree. A stack that
    its process takes down is done again job by job, so that none takes down the others.

    Iterate over `run()`; it yields after each look at the processes, so that the caller can draw.
    Closing it stops them. A job that fails, in whatever way, leaves the others. What another
    process trains is waited for, and taken over where it was left.

    Args:
        timeout: seconds without the end of a step after which a run counts as hung.
        stack_size: of a job, how many of its shape one process trains at once; None: one.

    Attributes:
        waiting: jobs that are not done and not begun, in the order in which they will be.
        running: those that run here.
        elsewhere: those found running in another process.
        failed: the jobs that did not finish, with the reason of each.
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
        self._alone: set[int] = set()  # jobs that a stack took down
        self.waiting = [job for job in plan.jobs if not self.record(job).is_done()]
        self.running: list[Attempt] = []
        self.elsewhere: list[Elsewhere] = []
        self.failed: list[tuple[Job, str]] = []

    def record(self, job: Job) -> Record:
        return Record(self.runs_dir / job.run)

    def run(self) -> Generator[None]:
        try:
            while self.waiting or self.running or self.elsewhere:
                self._look_elsewhere()
                self._start()
                yield
                time.sleep(POLL)
                for each in list(self.running):
                    if each.has_ended():
                        self.running.remove(each)
                        self._finish(each)
            yield
        finally:
            self._end_all()

    def _start(self) -> None:
        """Begin what waits, as long as there is room."""
        while self.waiting and len(self.running) < self.workers:
            job = self.waiting.pop(0)
            record = self.record(job)
            if record.is_done():  # another sweep was faster
                continue
            if is_held(record):
                self.elsewhere.append(Elsewhere(job, time.time()))
                continue
            beside = self._beside(job)
            path = self.plan.path(self.runs_dir)
            try:
                self.running.append(Attempt(path, job, self.timeout, beside))
            except OSError as error:
                self.failed += [(each, f"cannot be started ({error})") for each in (job, *beside)]

    def _beside(self, job: Job) -> list[Job]:
        """Take jobs from those that wait to be stacked with one that is about to begin."""
        if self.stack_size is None or job.id in self._alone:
            return []
        config = from_dict(job.config)
        key, room = stack_key(config), self.stack_size(config) - 1
        if not room:
            return []
        found = [
            each
            for each in self.waiting
            if each.id not in self._alone
            and stack_key(from_dict(each.config)) == key
            and not is_held(self.record(each))
            and not self.record(each).is_done()
        ][:room]
        self.waiting = [each for each in self.waiting if each not in found]
        return found

    def _finish(self, attempt: Attempt) -> None:
        for job in reversed(attempt.jobs):
            if self.record(job).is_done():
                continue
            locked = attempt.process.returncode == LOCKED and not attempt.says_why(job)
            taken_down = len(attempt.jobs) > 1 and not attempt.says_why(job)
            if locked or taken_down:  # another one began it at the same time, or so
                self.waiting.insert(0, job)
                self._alone.add(job.id)
            else:
                self.failed.append((job, attempt.why_unfinished(job)))

    def _look_elsewhere(self) -> None:
        """Take back what others have left, unless it failed: it would fail here, too."""
        for each in list(self.elsewhere):
            record = self.record(each.job)
            if is_held(record):
                continue
            self.elsewhere.remove(each)
            status = last_word(record)
            if status["state"] == "failed" and status.get("heartbeat", 0.0) >= each.since:
                self.failed.append((each.job, str(status.get("reason"))))
            elif not record.is_done():
                self.waiting.insert(0, each.job)

    def _end_all(self) -> None:
        """Ask every process to stop at its next step, and end those that do not in time."""
        ending = list(self.running)
        try:
            for each in ending:
                each.end()
            while not all(each.has_ended() for each in ending):
                time.sleep(0.05)
        finally:  # a second Ctrl-C kills at once
            for each in ending:
                each.kill()
                for job in each.jobs:
                    if not self.record(job).is_done():
                        each.why_unfinished(job)

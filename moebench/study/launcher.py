"""Runs the jobs of a plan on an engine; other sweeps may run the same jobs at the same time."""

import time
from collections.abc import Generator
from itertools import islice
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple

from moebench.config.compose import from_dict
from moebench.config.stackable import stack_key_of
from moebench.errors import RecordError
from moebench.lock import is_held
from moebench.plans import Job, Plan
from moebench.records import Record
from moebench.study.engines import Batch, Engine, Placed
from moebench.study.job import Attempt
from moebench.study.status import last_status


class Elsewhere(NamedTuple):
    """A job whose run another process is training."""

    job: Job
    since: float  # when this was first noticed, in epoch seconds


class Launcher:
    """Runs the jobs of a plan on an engine, as many at a time as it has room for.

    A process trains a stack of jobs if the engine allows it and their shapes agree. If such a
    process ends early, its jobs run again one by one, so that one job cannot stop the others.

    Iterate over `run()`: it yields after each look at the engine, so that the caller can show
    progress. Closing it ends what runs. A job that fails does not stop the others. If another
    process trains a run, the launcher waits, and continues the run if that process leaves it
    unfinished.

    Args:
        plan: whose jobs are run.
        within: the plan on disk, if `plan` is a part of it; None: `plan` itself.

    Attributes:
        waiting: jobs that are not started, in the order in which they will start.
        running: what the engine has taken and not ended.
        elsewhere: jobs that run in processes of others.
        failed: the jobs that did not finish, each with the reason.
    """

    def __init__(
        self, plan: Plan, runs_dir: Path, engine: Engine, within: Plan | None = None
    ) -> None:
        self.plan = plan
        self.runs_dir = runs_dir
        self.engine = engine
        engine.open(within or plan, runs_dir)
        self._alone: set[int] = set()  # jobs whose stack ended early; they run alone
        self.waiting = [job for job in plan.jobs if not _is_whole(self.record(job))]
        self.running: list[Placed] = []
        self.elsewhere: list[Elsewhere] = []
        self.failed: list[tuple[Job, str]] = []

    def record(self, job: Job) -> Record:
        return Record(self.runs_dir / job.run)

    def run(self) -> Generator[None]:
        """Run all jobs; yields after each look at the engine."""
        try:
            self._attach()
            while self.waiting or self.running or self.elsewhere:
                self._check_elsewhere()
                self.start()
                yield
                self._pause()
                for placed in list(self.running):
                    if placed.has_ended():
                        self.running.remove(placed)
                        self._finish(placed)
            yield
        finally:
            self.end()

    def _pause(self) -> None:
        """Wait for the next look at the engine, or until a process of this one ends."""
        ours = [placed.process for placed in self.running if isinstance(placed, Attempt)]
        ends = [process.sentinel for process in ours if process.exitcode is None]
        if ends:
            wait(ends, self.engine.poll)
        else:
            time.sleep(self.engine.poll)

    def leave(self) -> list[Placed]:
        """Start all jobs and let them be; what the engine has of them."""
        self._attach()
        self.start()
        return self.running

    def batches(self) -> list[Batch]:
        """The waiting jobs that the engine has room for, as batches; they wait no longer."""
        batches: list[Batch] = []
        while self.waiting and len(self.running) + len(batches) < self.engine.room:
            job = self.waiting.pop(0)
            record = self.record(job)
            if record.is_done():  # by another sweep, or its results were changed
                try:
                    record.refuse_changes()
                except RecordError as error:
                    self.failed.append((job, str(error)))
                continue
            if is_held(record):
                self.elsewhere.append(Elsewhere(job, time.time()))
                continue
            batches.append((job, *self._take_stack(job)))
        return batches

    def start(self) -> None:
        """Start waiting jobs while the engine has room."""
        if batches := self.batches():
            self.running += self.engine.start(batches)

    def end(self) -> None:
        """Ask every process to stop at its next step, and kill those that do not stop in time."""
        ending = list(self.running)
        try:
            for placed in ending:
                placed.end()
            while not all(placed.has_ended() for placed in ending):
                time.sleep(self.engine.poll / 4)
        finally:  # a second Ctrl-C kills at once
            for placed in ending:
                placed.kill()
                for job in placed.jobs:
                    if not self.record(job).is_done():
                        placed.reason_unfinished(job)

    def _attach(self) -> None:
        """Take over what an earlier sweep has left with the engine."""
        found = self.engine.running(self.waiting)
        self.running += found
        taken = {job.id for placed in found for job in placed.jobs}
        self.waiting = [job for job in self.waiting if job.id not in taken]

    def _take_stack(self, job: Job) -> list[Job]:
        """Remove from the waiting jobs those that one process can train together with `job`."""
        if job.id in self._alone:
            return []
        room = self.engine.stack_size(from_dict(job.config)) - 1
        if room < 1:
            return []
        key = stack_key_of(job.config)
        fitting = (
            other
            for other in self.waiting
            if other.id not in self._alone
            and stack_key_of(other.config) == key
            and not is_held(self.record(other))
            and not self.record(other).is_done()
        )
        stacked = list(islice(fitting, room))
        taken = {other.id for other in stacked}
        self.waiting = [other for other in self.waiting if other.id not in taken]
        return stacked

    def _finish(self, placed: Placed) -> None:
        """Queue again, or record as failed, the jobs that a process left unfinished."""
        for job in reversed(placed.jobs):
            if self.record(job).is_done():
                continue
            if placed.goes_again(job):
                self.waiting.insert(0, job)
                self._alone.add(job.id)
            else:
                self.failed.append((job, placed.reason_unfinished(job)))

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


def _is_whole(record: Record) -> bool:
    """Whether a run is done, and a quick look finds nothing changed."""
    try:
        record.refuse_changes()
    except RecordError:
        return False
    return True

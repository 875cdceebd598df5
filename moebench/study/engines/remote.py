"""A batch that another machine trains: known by its records, and by the word of its engine."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moebench.lock import is_held
from moebench.plans import Job
from moebench.records import Record
from moebench.study.engines import Batch
from moebench.study.status import STOPPED, last_status, leave_unfinished

PATIENCE = 60.0  # seconds for a process to stop in order, and then for the engine to say so


class Remote:
    """A batch with an engine that queues it, places it and may lose it.

    The records say what is done, and the leases what is being trained. The word of the engine is
    asked for the rest: whether a batch is still queued, and why it ended.

    Args:
        before: the status of each job when the batch was handed in, by id.
    """

    def __init__(
        self, runs_dir: Path, jobs: Batch, before: Mapping[int, Mapping[str, Any]] | None = None
    ) -> None:
        self.jobs = jobs
        self._runs_dir = runs_dir
        self.before = before or {job.id: last_status(self._record(job)) for job in jobs}
        self._word: str | None = None
        self.reasons: dict[int, str] = {}  # by id, of the jobs of a process that ended in order
        self._ended_at: float | None = None  # when it was asked to end

    def word(self) -> str | None:
        """The word of the engine: None while it queues or runs the batch, else why it ended.

        "" means that its process ended in order, so that the records say it all.
        """
        raise NotImplementedError

    def cancel(self, *, force: bool) -> None:
        """Take the batch out of the queue, or have its process stopped, or with `force` killed."""
        raise NotImplementedError

    def has_ended(self) -> bool:
        unfinished = [job for job in self.jobs if not self._record(job).is_done()]
        if not unfinished:
            return True
        if self._word is None:
            self._word = self.word()
        if self._ended_at is not None:
            late = time.monotonic() - self._ended_at
            if late > PATIENCE:
                self.kill()
            if late > 2 * PATIENCE:
                self._word = self._word or "did not end when asked to"
                return True
        # The owner of a lease may have died on a machine that this one cannot ask.
        return self._word is not None and not any(is_held(self._record(job)) for job in unfinished)

    def end(self) -> None:
        self._ended_at = time.monotonic()
        self.cancel(force=False)

    def kill(self) -> None:
        if self._word is None and not all(self._record(job).is_done() for job in self.jobs):
            self.cancel(force=True)

    def goes_again(self, job: Job) -> bool:
        return False

    def reason_unfinished(self, job: Job) -> str:
        record = self._record(job)
        status = last_status(record)
        word = self._word or ""
        if status["state"] in ("failed", "stopped") and not self._is_old(job, status):
            return f"{status.get('reason')}{word and f' ({word})'}"
        if self._ended_at is not None:
            return leave_unfinished(record, job, "stopped", STOPPED)
        reason = self.reasons.get(job.id) or word or "its process ended without a message"
        return leave_unfinished(record, job, "failed", reason)

    def moved(self, job: Job) -> bool:
        """Whether a job has completed steps since the batch was handed in."""
        return last_status(self._record(job))["step"] > self.before[job.id].get("step", 0)

    def _is_old(self, job: Job, status: Mapping[str, Any]) -> bool:
        return status.get("heartbeat") == self.before[job.id].get("heartbeat")

    def _record(self, job: Job) -> Record:
        return Record(self._runs_dir / job.run)

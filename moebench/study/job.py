"""A child process that trains jobs, watched by its parent: heartbeats, timeout, and how it ends.

The process is `python -m moebench.study PLAN ID[,ID...] [PLUGIN...]`, forked from a server that
has torch imported; it trains several jobs as one stack. If it fails, other processes continue, and
each record says why its job did not finish.
"""

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from moebench.disk import open_to_append
from moebench.errors import OUT_OF_MEMORY
from moebench.plans import Job
from moebench.records import Record, printable
from moebench.registry import plugins
from moebench.study.child import GRACE, start
from moebench.study.status import STOPPED, last_status, leave_unfinished

LOCKED = 4  # exit code of a job whose run another process trains
MODULE = "moebench.study"  # what the process runs
LOST = 255  # exit code of a process whose server has ended, as `multiprocessing` has it
DUMP = signal.SIGUSR2  # makes a process write the stack of each thread to its log


class Attempt:
    """A process that trains one job or a stack of jobs. Call `has_ended` regularly.

    Args:
        plan_path: the file that `Plan.write` returned.
        job: the job to train.
        timeout: seconds without a completed step after which the process is ended; None: never.
        stacked: jobs to train in one stack with `job`.
        environ: what the process finds in its environment, beside what this one has.

    Raises:
        OSError: the process cannot be started.
    """

    def __init__(
        self,
        plan_path: Path,
        job: Job,
        timeout: float | None = None,
        stacked: Sequence[Job] = (),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.job, self.jobs = job, (job, *stacked)
        self._runs_dir = plan_path.parents[2]
        self.record = self._record(job)
        self.timeout = timeout
        self.log = plan_path.parent / "logs" / f"{job.run}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        ids = ",".join(str(job.id) for job in self.jobs)
        with open_to_append(self.log) as output:
            self._log_start = output.tell()
        words = [str(plan_path.resolve()), ids, *plugins()]
        self.process = start(MODULE, words, self.log, environ)
        self._heartbeats = self._read_heartbeats()
        self._last_change = time.monotonic()
        self._kill_at = math.inf
        self._hung = ""

    def has_ended(self) -> bool:
        """Whether the process has ended. If it hangs, ask it to end, and later kill it."""
        if self.process.exitcode is not None:
            # If the server that forks the processes has ended, theirs may still save a checkpoint.
            return self.process.exitcode != LOST or not self._exists()
        now = time.monotonic()
        if now > self._kill_at:
            self.kill()
        elif self._hung and self._kill_at == math.inf:
            self.end()  # one poll after DUMP, so that its stacks are written
        elif self.timeout is not None and not self._hung:
            heartbeats = self._read_heartbeats()
            if heartbeats != self._heartbeats:
                self._heartbeats, self._last_change = heartbeats, now
            elif now - self._last_change > self.timeout:
                self._hung = (
                    f"completed no step for {self.timeout:g} s (--timeout) after step "
                    f"{last_status(self.record)['step']}; {self.log} shows where it hung"
                )
                self._signal(DUMP)
        return False

    def end(self) -> None:
        """Ask the process to stop at its next step; after GRACE seconds, `has_ended` kills it."""
        self._signal(signal.SIGTERM)
        self._kill_at = time.monotonic() + GRACE

    def kill(self) -> None:
        """Kill the process and its children, if it has not ended."""
        if self.process.exitcode is None:
            self._signal(signal.SIGKILL, os.killpg)
            self._signal(signal.SIGKILL)  # if it has no group of its own yet
            self.process.join()

    def reported(self, job: Job) -> bool:
        """Whether the ended process itself recorded why a job is unfinished."""
        status = last_status(self._record(job))
        ended = status["state"] in ("failed", "stopped")
        return ended and status.get("pid") == self.process.pid and not self._hung

    def goes_again(self, job: Job) -> bool:
        """Whether another process trained the job, or a job of its stack ended the process.

        A job of a stack that did not fit into memory goes again, since it may fit alone.
        """
        stacked = len(self.jobs) > 1
        if self.reported(job):
            reason = last_status(self._record(job)).get("reason")
            return stacked and OUT_OF_MEMORY in str(reason)
        return stacked or self.process.exitcode == LOCKED

    def reason_unfinished(self, job: Job | None = None) -> str:
        """Why the ended process left a job unfinished. The reason is also written to the record."""
        job = job or self.job
        record = self._record(job)
        if self.reported(job):
            return str(last_status(record).get("reason"))
        if self.is_ending:
            return leave_unfinished(record, job, "stopped", STOPPED)
        return leave_unfinished(record, job, "failed", self._hung or self._last_output(job))

    @property
    def is_ending(self) -> bool:
        """Whether the process was asked to end, and not because it hung."""
        return self._kill_at < math.inf and not self._hung

    def _signal(self, number: signal.Signals, send: Callable[[int, int], None] = os.kill) -> None:
        assert self.process.pid is not None
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            send(self.process.pid, number)

    def _exists(self) -> bool:
        assert self.process.pid is not None
        return Path(f"/proc/{self.process.pid}").exists()

    def _record(self, job: Job) -> Record:
        return Record(self._runs_dir / job.run)

    def _read_heartbeats(self) -> list[object]:
        return [last_status(self._record(job)).get("heartbeat") for job in self.jobs]

    def _last_output(self, job: Job) -> str:
        """The signal that killed the process, its last line about the job, or its last line."""
        code = self.process.exitcode or 0
        if code < 0:
            return f"killed by signal {-code} ({signal.strsignal(-code)})"
        with open(self.log, "rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").strip().splitlines()
        errors = [line for line in lines if line.startswith(f"error: {job.run}: ")]
        last = (errors or lines or [f"exit code {code}"])[-1]
        return printable(last.removeprefix("error: "))

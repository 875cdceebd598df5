"""Jobs in a process of their own, watched from outside: signs of life, and how it ends.

The process is `python -m moebench.study PLAN ID[,ID...] PARENT [PLUGIN...]`; several jobs are
trained as one stack. Whatever it does, it takes no other process with it, and why a job did not
finish is on record.
"""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from moebench.lock import is_held
from moebench.plans import Job
from moebench.records import Record, printable
from moebench.registry import plugins
from moebench.study.status import last_word

LOCKED = 4  # exit code of a job whose run another process trains
GRACE = 30.0  # seconds that a process gets to end its step and save a checkpoint
DUMP = signal.SIGUSR2  # makes a job write to its log where each thread stands


class Attempt:
    """A job that was started; ask `has_ended` from time to time.

    Args:
        plan_path: a plan among the runs, as `Plan.write` leaves it.
        job: which of its jobs.
        beside: jobs that are stacked with it.
        timeout: seconds without the end of a step after which it is ended; None waits for ever.

    Raises:
        OSError: if it cannot be started.
    """

    def __init__(
        self,
        plan_path: Path,
        job: Job,
        timeout: float | None = None,
        beside: Sequence[Job] = (),
    ) -> None:
        self.job, self.jobs = job, (job, *beside)
        self._runs_dir = plan_path.parents[2]
        self.record = self._record(job)
        self.timeout = timeout
        self.log = plan_path.parent / "logs" / f"{job.run}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        # The same code as here: what lies in the working directory counts only if it counts here.
        python = [sys.executable, *(["-P"] if os.getcwd() not in sys.path[:1] else [])]
        ids = ",".join(str(each.id) for each in self.jobs)
        words = [str(plan_path.resolve()), ids, str(os.getpid()), *plugins()]
        with open(self.log, "ab") as output:
            self._log_start = output.tell()
            self.process = subprocess.Popen(
                [*python, "-m", "moebench.study", *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")},
                # A group of its own: Ctrl-C reaches the sweep alone, which then ends its jobs.
                start_new_session=True,
            )
        self._heartbeats = self._heard_of()
        self._heard = time.monotonic()
        self._kill_at = math.inf
        self._hung = ""

    def has_ended(self) -> bool:
        """Look at the process: ask it to end if it hangs, and kill it if that is of no use."""
        if self.process.poll() is not None:
            return True
        now = time.monotonic()
        if now > self._kill_at:
            self.kill()
        elif self._hung and self._kill_at == math.inf:
            self.end()  # a look later, so that it has written where it stands
        elif self.timeout is not None and not self._hung:
            heartbeats = self._heard_of()
            if heartbeats != self._heartbeats:
                self._heartbeats, self._heard = heartbeats, now
            elif now - self._heard > self.timeout:
                self._hung = (
                    f"ended no step for {self.timeout:g} s (--timeout) after step "
                    f"{last_word(self.record)['step']}; {self.log} says where it stood"
                )
                self.process.send_signal(DUMP)
        return False

    def end(self) -> None:
        """Ask the process to stop at its next step; `has_ended` kills it if it does not in time."""
        self.process.terminate()
        self._kill_at = time.monotonic() + GRACE

    def kill(self) -> None:
        """Kill the process, and whatever it started, if it has not ended."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def says_why(self, job: Job) -> bool:
        """Whether the process, which has ended, put on record itself why a job is unfinished."""
        status = last_word(self._record(job))
        own = status.get("pid") == self.process.pid and status["state"] in ("failed", "stopped")
        return own and not self._hung

    def why_unfinished(self, job: Job | None = None) -> str:
        """Why the process, which has ended, left a job unfinished; put on record, too."""
        job = job or self.job
        record = self._record(job)
        status = last_word(record)
        if self.says_why(job):
            return str(status.get("reason"))
        state, reason = "failed", self._hung or self._how_it_ended(job)
        if self.is_ending:
            state, reason = "stopped", "ended with the sweep; the same sweep goes on with it"
        if record.exists() and not is_held(record):  # else it is another's by now
            kept = {key: status[key] for key in status.keys() - {"state", "pid", "heartbeat"}}
            try:
                record.set_status(
                    state, **{**kept, "steps": job.config["train"]["steps"], "reason": reason}
                )
            except OSError as error:
                reason += f"; its status cannot be written ({error.strerror})"
        return reason

    @property
    def is_ending(self) -> bool:
        """Whether it was asked to end."""
        return self._kill_at < math.inf and not self._hung

    def _record(self, job: Job) -> Record:
        return Record(self._runs_dir / job.run)

    def _heard_of(self) -> list[object]:
        return [last_word(self._record(each)).get("heartbeat") for each in self.jobs]

    def _how_it_ended(self, job: Job) -> str:
        code = self.process.returncode
        if code < 0:
            return f"killed by signal {-code} ({signal.strsignal(-code)})"
        with open(self.log, "rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").strip().splitlines()
        own = [each for each in lines if each.startswith(f"error: {job.run}: ")]
        last = (own or lines or [f"exit code {code}"])[-1]
        return printable(last.removeprefix("error: "))

"""Jobs in a process of its own, watched from outside: signs of life, and how it ends.

The process is `python -m moebench.study PLAN IDS PARENT`: one job, or several that it trains side
by side. Whatever it does, it takes nobody else with it, and why a job did not finish is on record.
"""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moebench.lock import is_held
from moebench.records import Record, printable
from moebench.study.plan import Job
from moebench.study.status import last_word

LOCKED = 4  # exit code of a job whose run another process trains
GRACE = 30.0  # seconds that a process gets to end its step and save a checkpoint
DUMP = signal.SIGUSR2  # makes a job write to its log where each thread stands


class Attempt:
    """Jobs that were started in one process; ask `has_ended` from time to time.

    Args:
        plan_path: a plan among the runs, as `Plan.write` leaves it.
        jobs: which of its jobs; several are a stack.
        timeout: seconds without the end of a step after which it is ended; None waits for ever.

    Raises:
        OSError: if it cannot be started.
    """

    def __init__(self, plan_path: Path, jobs: Sequence[Job], timeout: float | None = None) -> None:
        self.jobs = tuple(jobs)
        self.runs_dir = plan_path.parents[2]
        self.timeout = timeout
        self.log = plan_path.parent / "logs" / f"{jobs[0].run}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        # The same code as here: what lies in the working directory counts only if it counts here.
        python = [sys.executable, *(["-P"] if os.getcwd() not in sys.path[:1] else [])]
        words = [str(plan_path.resolve()), ",".join(str(job.id) for job in jobs), str(os.getpid())]
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
        self._heartbeats = self._beats()
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
            beats = self._beats()
            if beats != self._heartbeats:
                self._heartbeats, self._heard = beats, now
            elif now - self._heard > self.timeout:
                self._hung = f"ended no step for {self.timeout:g} s (--timeout)"
                self.process.send_signal(DUMP)
        return False

    def record(self, job: Job) -> Record:
        return Record(self.runs_dir / job.run)

    def _beats(self) -> list[Any]:
        return [last_word(self.record(job)).get("heartbeat") for job in self.jobs]

    def end(self) -> None:
        """Ask the process to stop at its next step; `has_ended` kills it if it does not in time."""
        self.process.terminate()
        self._kill_at = time.monotonic() + GRACE

    def kill(self) -> None:
        """Kill the process, and whatever it started, if it has not ended."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def why_unfinished(self, job: Job) -> str:
        """Why the process, which has ended, left a run unfinished; put on record, too."""
        record = self.record(job)
        status = last_word(record)
        own = status.get("pid") == self.process.pid and status["state"] in ("failed", "stopped")
        if own and not self._hung:
            return str(status.get("reason"))
        state, reason = "failed", self._how_it_ended()
        if self._hung:
            step = status.get("step", 0)
            reason = f"{self._hung} after step {step}; {self.log} says where it stood"
        if not self._hung and self._kill_at < math.inf:
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

    def _how_it_ended(self) -> str:
        code = self.process.returncode
        if code < 0:
            return f"killed by signal {-code} ({signal.strsignal(-code)})"
        with open(self.log, "rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").strip().splitlines()
        return printable(lines[-1].removeprefix("error: ")) if lines else f"exit code {code}"

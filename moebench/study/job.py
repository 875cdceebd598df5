"""One job in a process of its own, watched from outside: signs of life, and how it ends.

The process is `python -m moebench.study PLAN ID PARENT [PLUGIN ...]`. Whatever it does, it takes
nobody with it, and why it did not finish is on record.
"""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from moebench.lock import is_held
from moebench.methods import plugins
from moebench.records import Record, printable
from moebench.study.plan import Job
from moebench.study.status import last_word

LOCKED = 4  # exit code of a job whose run another process trains
GRACE = 30.0  # seconds that a process gets to end its step and save a checkpoint
DUMP = signal.SIGUSR2  # makes a job write to its log where each thread stands


class Attempt:
    """A job that was started; ask `has_ended` from time to time.

    Args:
        plan_path: a plan among the runs, as `Plan.write` leaves it.
        job: which of its jobs.
        timeout: seconds without the end of a step after which it is ended; None waits for ever.

    Raises:
        OSError: if it cannot be started.
    """

    def __init__(self, plan_path: Path, job: Job, timeout: float | None = None) -> None:
        self.job = job
        self.record = Record(plan_path.parents[2] / job.run)
        self.timeout = timeout
        self.log = plan_path.parent / "logs" / f"{job.run}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        # The same code as here: what lies in the working directory counts only if it counts here.
        python = [sys.executable, *(["-P"] if os.getcwd() not in sys.path[:1] else [])]
        words = [str(plan_path.resolve()), str(job.id), str(os.getpid()), *plugins()]
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
        self._heartbeat = last_word(self.record).get("heartbeat")
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
            status = last_word(self.record)
            if status.get("heartbeat") != self._heartbeat:
                self._heartbeat, self._heard = status.get("heartbeat"), now
            elif now - self._heard > self.timeout:
                self._hung = (
                    f"ended no step for {self.timeout:g} s (--timeout) after step "
                    f"{status['step']}; {self.log} says where it stood"
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

    def why_unfinished(self) -> str:
        """Why the process, which has ended, left its run unfinished; put on record, too."""
        status = last_word(self.record)
        own = status.get("pid") == self.process.pid and status["state"] in ("failed", "stopped")
        if own and not self._hung:
            return str(status.get("reason"))
        state, reason = "failed", self._hung or self._how_it_ended()
        if not self._hung and self._kill_at < math.inf:
            state, reason = "stopped", "ended with the sweep; the same sweep goes on with it"
        if self.record.exists() and not is_held(self.record):  # else it is another's by now
            kept = {key: status[key] for key in status.keys() - {"state", "pid", "heartbeat"}}
            try:
                self.record.set_status(
                    state, **{**kept, "steps": self.job.config["train"]["steps"], "reason": reason}
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

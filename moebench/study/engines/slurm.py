"""What SLURM says of jobs: by its accounting, or where there is none by its queue."""

import subprocess
import time

ASK = 5.0  # seconds between two questions; a question is about all jobs
FADED = 60.0  # seconds after which a state that mostly passes is final
CANCELLED = "CANCELLED"
GONE = "no longer in the queue"  # without accounting
FORGOTTEN = "neither in the accounts nor in the queue"
LOST = ("PREEMPTED", "TIMEOUT", "NODE_FAIL")
PASSING = ("PREEMPTED", "NODE_FAIL", "BOOT_FAIL", FORGOTTEN)  # SLURM may put it back, or be late
OPEN = (
    *("PENDING", "RUNNING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "CONFIGURING"),
    *("COMPLETING", "SUSPENDED", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SPECIAL_EXIT"),
)


class Queue:
    """The states of jobs, asked for all together and not too often."""

    def __init__(self) -> None:
        self._jobs: set[str] = set()
        self._states: dict[str, str] = {}
        self._since: dict[str, float] = {}  # when a job was first seen in a state that may pass
        self._asked_at = float("-inf")
        self._accounts: bool | None = None

    def add(self, job: str) -> None:
        self._jobs.add(job)
        self._asked_at = float("-inf")

    def ended(self, job: str) -> str:
        """The state in which a job has ended; "" while it waits or runs, or while nobody knows."""
        if job not in self._jobs:
            self.add(job)
        if time.monotonic() - self._asked_at > max(ASK, len(self._jobs) / 100):
            self._asked_at = time.monotonic()
            self._ask()
        state = self._states.get(job, "")
        if not state or state.split(" ")[0] in OPEN:
            self._since.pop(job, None)
            return ""
        since = self._since.setdefault(job, time.monotonic())
        passing = state in PASSING and time.monotonic() - since < FADED
        return "" if passing else state

    def _ask(self) -> None:
        accounts: dict[str, str] = {}
        if self._accounts is not False:
            listed = _lines("sacct", "-n", "-X", "-P", "-o", "JobID,State", "-j", self._masters())
            self._accounts = listed is not None
            accounts = _states(listed or [])
            self._states.update(accounts)
        # Accounts are late, list elements that wait together as one, and forget.
        unknown = {job for job in self._jobs - accounts.keys() if not self._is_final(job)}
        if not unknown:
            return
        listed = _lines("squeue", "-h", "-r", "-o", "%i|%T", "-t", "all", "-j", self._masters())
        if listed is not None:
            queued, absent = _states(listed), FORGOTTEN if self._accounts else GONE
            self._states.update({job: queued.get(job, absent) for job in unknown})

    def _masters(self) -> str:
        """The jobs, an array as one."""
        return ",".join(sorted({job.split("_")[0] for job in self._jobs}))

    def _is_final(self, job: str) -> bool:
        """Whether the accounts have said how a job ended, which they may forget."""
        state = self._states.get(job, FORGOTTEN)
        return bool(self._accounts) and state.split(" ")[0] not in OPEN and state not in PASSING


def _states(lines: list[str]) -> dict[str, str]:
    """The state of each job; of the elements of an array that wait together, of none."""
    return {job: state for job, _, state in (line.partition("|") for line in lines)}


def _lines(*command: str) -> list[str] | None:
    """The output of a command; None if it fails, and none for a job that SLURM has forgotten."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode and "Invalid job id" not in done.stderr:
        return None
    return done.stdout.splitlines()

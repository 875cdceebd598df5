"""Engines place the jobs of a plan: on this machine, on SLURM, on Ray, or on anything by commands.

An engine starts batches of jobs, says how they are, and ends them. Queues and placement are its
own. What became of a run is in its record, which the process that trains it writes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from moebench.config.schema import ExperimentConfig
from moebench.errors import ConfigError
from moebench.plans import Job, Plan
from moebench.study.stacking import stack_size

Batch = tuple[Job, ...]  # jobs that one process trains, as a stack if they are several


class Worker(NamedTuple):
    """What an engine's workers have.

    Attributes:
        precision: what `train.precision=auto` means there.
        gpu_bytes: free memory of the GPU that a worker gets; 0 without one.
    """

    precision: str
    gpu_bytes: int


class Placed(Protocol):
    """A batch that an engine has taken: it is queued or running, or has ended."""

    @property
    def jobs(self) -> Batch: ...

    def has_ended(self) -> bool:
        """Whether nothing works on the batch any more. Ask regularly."""
        ...

    def end(self) -> None:
        """Ask its process to stop at the next step, with a checkpoint."""
        ...

    def kill(self) -> None:
        """End it at once, if it has not ended."""
        ...

    def goes_again(self, job: Job) -> bool:
        """Whether a job that the ended batch left unfinished is to be started again, alone."""
        ...

    def reason_unfinished(self, job: Job) -> str:
        """Why the ended batch left a job unfinished. The reason is also written to the record."""
        ...


class Engine(Protocol):
    """Where the jobs of a plan run.

    Attributes:
        poll: seconds between two looks at what it runs.
        room: how many batches it takes at a time.
        stays: whether its jobs go on without the sweep that started them.
    """

    poll: float
    room: int
    stays: bool

    def worker(self) -> Worker | None:
        """What its workers have; None for this machine, which each config asks for itself."""
        ...

    def open(self, plan: Plan, runs_dir: Path) -> None:
        """Get ready for the jobs of a plan, which lies among the runs. Starts and writes nothing.

        Raises ConfigError for a plan that it cannot run.
        """
        ...

    def stack_size(self, config: ExperimentConfig) -> int:
        """How many runs of this shape one of its processes trains at once."""
        worker = self.worker()
        return stack_size(config, gpu_bytes=worker and worker.gpu_bytes)

    def running(self, jobs: Sequence[Job]) -> Sequence[Placed]:
        """What an earlier sweep has started of these jobs and has not ended; by default nothing."""
        return ()

    def start(self, batches: Sequence[Batch]) -> Sequence[Placed]:
        """Place batches. Raises ConfigError where the engine refuses all of them."""
        ...

    def close(self) -> None:
        """Let go of what the engine holds, nothing by default. Its jobs have ended, or stay."""


class NotStarted:
    """A batch that could not be started.

    Args:
        why: the cause, in a few words.
    """

    def __init__(self, jobs: Batch, why: str) -> None:
        self.jobs, self._why = jobs, why

    def has_ended(self) -> bool:
        return True

    def end(self) -> None: ...

    def kill(self) -> None: ...

    def goes_again(self, job: Job) -> bool:
        return False

    def reason_unfinished(self, job: Job) -> str:
        return f"cannot be started ({self._why})"


def missing_extra(name: str) -> ConfigError:
    """The error of an engine whose library is not installed."""
    return ConfigError(
        f"--launcher {name}: {name} is not installed; add it with: pip install 'moebench[{name}]'"
    )

"""The engine `local`: processes on this machine, one a core, or one a GPU with a stack of runs."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from moebench import device
from moebench.config.schema import ExperimentConfig
from moebench.errors import ConfigError
from moebench.machine import usable_cores
from moebench.plans import Plan
from moebench.study.engines import Batch, Engine, NotStarted, Placed
from moebench.study.job import Attempt
from moebench.study.stacking import on_gpu, stack_size


class Local(Engine):
    """Processes on this machine, forked from one that has imported torch.

    Args:
        processes: at a time; None: one a GPU where runs use one, else one a core.
        timeout: seconds without a completed step after which a run counts as hung; None: never.
        gpus: places of GPUs among those that torch sees; None: all. Each process gets one.
        stack: runs in a process; None: by `run.stack`.
    """

    poll = 0.2
    stays = False

    def __init__(
        self,
        processes: int | None = None,
        timeout: float | None = None,
        gpus: Sequence[int] | None = None,
        stack: int | None = None,
    ) -> None:
        self.room = processes or usable_cores()
        self._processes, self._timeout, self._stack = processes, timeout, stack
        self._gpus = gpus
        self._devices: list[str] = []  # values of CUDA_VISIBLE_DEVICES; empty: as this process
        self._path = Path()
        self._busy: list[tuple[str, Attempt]] = []

    def worker(self) -> None:
        return None

    def open(self, plan: Plan, runs_dir: Path) -> None:
        self._path = plan.path(runs_dir)
        if self._stack is not None:  # for a batch, whose process takes the device that it finds
            return
        wanted = {job.config.get("run", {}).get("device", "auto") for job in plan.jobs}
        uses_gpu = any(map(on_gpu, wanted))
        self._devices = self._chosen(device.visible_gpus()) if uses_gpu or self._gpus else []
        # One process with a stack of runs fills a GPU; several would only compete for it.
        self.room = self._processes or (max(1, len(self._devices)) if uses_gpu else usable_cores())

    def _chosen(self, seen: Sequence[str]) -> list[str]:
        wrong = [place for place in self._gpus or () if place >= len(seen)]
        if wrong:
            there = f"there are {len(seen)}, from 0 to {len(seen) - 1}" if seen else "there is none"
            raise ConfigError(
                f"--gpus {wrong[0]}: no such GPU; {there}"
                + ("" if len(seen) else ", so leave --gpus out")
            )
        chosen = range(len(seen)) if self._gpus is None else dict.fromkeys(self._gpus)
        return [seen[place] for place in chosen]

    def stack_size(self, config: ExperimentConfig) -> int:
        sharing = -(-self.room // max(1, len(self._devices)))
        return self._stack or stack_size(config, sharing)

    def start(self, batches: Sequence[Batch]) -> list[Placed]:
        return [self._start(batch) for batch in batches]

    def _start(self, batch: Batch) -> Placed:
        first, *stacked = batch
        gpu = self._free_device()
        environ = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        try:
            attempt = Attempt(self._path, first, self._timeout, stacked, environ)
        except OSError as error:
            return NotStarted(batch, str(error))
        if gpu is not None:
            self._busy.append((gpu, attempt))
        return attempt

    def _free_device(self) -> str | None:
        """The GPU with the fewest processes; None where processes see what this one sees."""
        self._busy = [pair for pair in self._busy if pair[1].process.exitcode is None]
        count = Counter(gpu for gpu, _ in self._busy)
        return min(self._devices, key=count.__getitem__, default=None)

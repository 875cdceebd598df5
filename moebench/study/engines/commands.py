"""The engine `commands`: a shell command a batch, for PBS, Kubernetes, GNU parallel or by hand."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from moebench.plans import Plan
from moebench.registry import plugins
from moebench.study.engines import Batch, Engine, Worker

KEPT = ("PYTHONPATH", "MOEBENCH_CACHE")  # of this process's environment, if they are set


class Commands(Engine):
    """Writes what would run, and runs nothing. It asks no worker, so `auto` means fp32, alone."""

    poll = 0.0
    room = sys.maxsize
    stays = True

    def __init__(self, timeout: float | None = None) -> None:
        self._timeout = timeout
        self._path = Path()

    def worker(self) -> Worker:
        return Worker("fp32", 0)

    def open(self, plan: Plan, runs_dir: Path) -> None:
        self._path = plan.path(runs_dir).resolve()

    def command(self, batch: Batch) -> str:
        """The command of a batch: complete, for any directory and as often as one likes."""
        folder = self._path.parent / "logs"
        kept = [f"{name}={os.environ[name]}" for name in KEPT if os.environ.get(name)]
        words = [*(["env", *kept] if kept else []), sys.executable, "-m", "moebench.study.attend"]
        words += [str(self._path), ",".join(str(job.id) for job in batch)]
        words += ["--timeout", f"{self._timeout:g}"] if self._timeout else []
        words += [word for plugin in plugins() for word in ("--plugin", plugin)]
        return f"{shlex.join(words)} >> {shlex.quote(str(folder / batch[0].run))}.out 2>&1"

    def start(self, batches: Sequence[Batch]) -> NoReturn:
        raise NotImplementedError("commands are printed, not started")

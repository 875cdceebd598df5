"""The engine `ray`: a task of Ray for each batch, on a cluster or on this machine."""

import logging
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from moebench import device
from moebench.disk import reason
from moebench.errors import ConfigError
from moebench.machine import usable_cores
from moebench.plans import Plan
from moebench.registry import plugins
from moebench.study.attend import attend, describe_worker
from moebench.study.engines import Batch, Engine, Placed, Worker, missing_extra
from moebench.study.engines.remote import Remote

KNOCK = 10.0  # seconds in which a cluster must answer
TRIES = 5  # to start Ray here: it gives itself 30 s, which are too few on a busy machine


class Ray(Engine):
    """Tasks of Ray, which queues and places them, and tries again those whose node died.

    Args:
        options: `address` of a cluster, None for one on this machine; the others are those of
            `ray.remote`, as `num_cpus` and `num_gpus`, which may be a fraction.
        timeout: seconds without a completed step after which a run counts as hung; None: never.

    Raises:
        ConfigError: without Ray, for an address that does not answer, and for options that Ray or
            its cluster do not have.
    """

    poll = 1.0
    room = sys.maxsize
    stays = False

    def __init__(self, options: Mapping[str, Any], timeout: float | None = None) -> None:
        try:
            ray = import_module("ray")
        except ImportError:
            raise missing_extra("ray") from None
        self._ray, self._timeout = ray, timeout
        self._options = dict(options)
        self._address = self._options.pop("address", None)
        self._path = self._runs_dir = Path()
        self._found: Worker | None = None
        try:
            self._attend = ray.remote(attend).options(**self._options)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"--engine: {reason(error)}") from None
        if self._address is None:
            self._check_resources()

    def _connect(self) -> None:
        """Reach the cluster, or start Ray on this machine."""
        if self._ray.is_initialized():
            return
        try:
            self._begin()
        except Exception as error:  # Ray raises a dozen kinds
            where = f"--engine address={self._address}" if self._address else "--launcher ray"
            raise ConfigError(
                f"{where}: Ray cannot be reached ({reason(error)}); ray status says whether it "
                "runs, and without address= it starts on this machine"
            ) from None

    def _begin(self) -> None:
        common = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._address is not None:
            _knock(str(self._address))
            self._ray.init(address=self._address, **common)
            return
        own = {"num_cpus": usable_cores(), "include_dashboard": False}
        for left in reversed(range(TRIES)):
            try:
                self._ray.init(**own, **common)
                return
            except Exception as error:
                self._ray.shutdown()
                if not left:
                    raise
                print(f"Ray does not start yet ({reason(error)}); trying again", file=sys.stderr)

    def _check_resources(self) -> None:
        """Refuse more than this machine has. What a cluster has may grow."""
        there = {"num_cpus": usable_cores(), "num_gpus": len(device.visible_gpus())}
        for option, most in there.items():
            wanted = self._options.get(option) or 0
            if wanted > most:
                raise ConfigError(
                    f"--engine {option}={wanted:g}: this machine has {most}; ask for at most "
                    "that, or name a cluster with --engine address=HOST:PORT"
                )

    def worker(self) -> Worker:
        if self._found is None:
            if self._options.get("num_gpus"):
                self._connect()
                task = self._ray.remote(describe_worker).options(**self._options)
                self._found = Worker(*self._ray.get(task.remote()))
            else:
                self._found = Worker("fp32", 0)
        return self._found

    def open(self, plan: Plan, runs_dir: Path) -> None:
        self._runs_dir, self._path = runs_dir, plan.path(runs_dir).resolve()
        if self._address is not None:
            self._connect()

    def start(self, batches: Sequence[Batch]) -> list[Placed]:
        self._connect()
        return [self._start(batch) for batch in batches]

    def _start(self, batch: Batch) -> "Task":
        words = (str(self._path), [job.id for job in batch], self._timeout, plugins())
        return Task(self._ray, self._attend.remote(*words), self._runs_dir, batch)

    def close(self) -> None:
        self._ray.shutdown()


class Task(Remote):
    """A batch as a task of Ray.

    Args:
        ray: the module.
        reference: to the exit code of the task.
    """

    def __init__(self, ray: Any, reference: Any, runs_dir: Path, jobs: Batch) -> None:
        super().__init__(runs_dir, jobs)
        self._ray, self._reference = ray, reference

    def word(self) -> str | None:
        ready, _ = self._ray.wait([self._reference], timeout=0)
        if not ready:
            return None
        try:
            _, self.reasons = self._ray.get(self._reference)
        except self._ray.exceptions.RayTaskError as error:
            return reason(error.cause)
        except self._ray.exceptions.RayError as error:
            return f"Ray: {reason(error)}"
        return ""

    def cancel(self, *, force: bool) -> None:
        with suppress(self._ray.exceptions.RayError, ValueError):
            self._ray.cancel(self._reference, force=force)


def _knock(address: str) -> None:
    """Raise OSError for a HOST:PORT that does not answer; Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=KNOCK).close()

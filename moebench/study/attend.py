"""A worker of an engine: it trains a batch of a plan's jobs, as a small sweep of its own.

`python -m moebench.study.attend PLAN ID[,ID...] [--timeout SECONDS] [--plugin MODULE]...`

The jobs train in a child process, so that a crash leaves this one to say why in the record. What is
done is left as it is, and what was begun is continued, so the same words may run any number of
times. The exit code is 0 if all is done, 1 if a job failed, and 75 or 130 after a signal.
"""

import argparse
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from moebench import device
from moebench.errors import ConfigError, MoebenchError, RecordError
from moebench.plans import Plan, read_plan
from moebench.processes import collected
from moebench.records import printable
from moebench.registry import load_plugin
from moebench.study.engines import Worker
from moebench.study.engines.local import Local
from moebench.study.launcher import Launcher
from moebench.study.status import in_sweep

# The exit code, and by the id of each job that failed the reason, which is also in its record,
# unless it has none.
Outcome = tuple[int, dict[int, str]]

LATE = 15.0  # seconds in which a file that another machine wrote must be there


class Attendant:
    """Trains a batch; it pickles as a few words.

    Args:
        plan: the path of a plan, as every worker sees it.
        numbers: the ids of the batch's jobs.
        timeout: seconds without a completed step after which a run counts as hung; None: never.
        plugins: modules that the jobs need.
    """

    def __init__(
        self,
        plan: str,
        numbers: Sequence[int],
        timeout: float | None = None,
        plugins: Sequence[str] = (),
    ) -> None:
        self.plan, self.numbers = plan, tuple(numbers)
        self.timeout, self.plugins = timeout, tuple(plugins)
        self._launcher: Launcher | None = None

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.plan, self.numbers, self.timeout, self.plugins)

    def __call__(self) -> Outcome:
        """Train the batch.

        Raises:
            RecordError: if this machine does not see the plan.
        """
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise ConfigError("WORLD_SIZE: a job starts its own process; start it without torchrun")
        path = Path(self.plan)
        plan = _seen(path)
        for plugin in self.plugins:
            load_plugin(plugin)
        part = replace(plan, jobs=tuple(map(plan.job, self.numbers)))
        engine = Local(1, self.timeout, stack=len(self.numbers))
        self._launcher = launcher = Launcher(part, path.parents[2], engine, within=plan)
        with collected() as signals, closing(launcher.run()) as polls:
            for _ in polls:
                if signals:
                    break
        reasons = {job.id: in_sweep(job.run, reason) for job, reason in launcher.failed}
        for number, reason in reasons.items():
            line = printable(f"error: {plan.job(number).run}: {reason}")
            print(line, file=sys.stderr, flush=True)
        if signals:
            return 130 if signals[0] == signal.SIGINT else 75, reasons
        return 1 if reasons else 0, reasons

    def stop(self) -> None:
        """Let the child process save a checkpoint and end."""
        if self._launcher is not None:
            self._launcher.end()


def attend(
    plan: str, numbers: Sequence[int], timeout: float | None, plugins: Sequence[str]
) -> Outcome:
    """Train a batch; see `Attendant`."""
    return Attendant(plan, numbers, timeout, plugins)()


def describe_worker() -> Worker:
    """What this machine has, for runs that leave the choice to it."""
    return Worker(device.suited_precision("auto"), device.free_bytes())


def _seen(path: Path) -> Plan:
    """The plan in a file that another machine may have written a moment ago."""
    deadline = time.monotonic() + LATE
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.5)
    if not path.exists():
        raise RecordError(
            f"{path}: {socket.gethostname()} does not see the plan; name a directory that all "
            "workers share with --runs-dir"
        )
    plan = read_plan(path, unedited=True)
    if plan.path(path.parents[2]) != path:
        raise RecordError(f"{path}: is not where the sweep wrote it; sweep again")
    return plan


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m moebench.study.attend")
    parser.add_argument("plan")
    parser.add_argument("ids", type=lambda text: [int(number) for number in text.split(",")])
    parser.add_argument("--timeout", type=float)
    parser.add_argument("--plugin", action="append", default=[])
    words = parser.parse_args()
    try:
        return attend(words.plan, words.ids, words.timeout, words.plugin)[0]
    except MoebenchError as error:
        print(*(printable(f"error: {line}") for line in error.lines), sep="\n", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())

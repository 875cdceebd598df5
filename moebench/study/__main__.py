"""One job of a plan in this process: `python -m moebench.study PLAN ID [PARENT [PLUGIN ...]]`.

It ends when the process PARENT is gone.
"""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from moebench.config.compose import from_dict
from moebench.config.identity import run_name
from moebench.data.corpus import prepare
from moebench.errors import LockedError, MoebenchError, RecordError
from moebench.lock import hold
from moebench.methods import load_plugin
from moebench.records import Record
from moebench.study.job import DUMP, GRACE, LOCKED
from moebench.study.plan import read_plan

WATCH = 0.5  # seconds between looks at the parent


def run_job(plan_path: Path, number: int, plugins: Sequence[str] = ()) -> int:
    """Run one job of a plan in this process; returns its exit code.

    A record that is there and unfinished is continued, one that is done is left as it is.
    """
    runs_dir = plan_path.parents[2]
    try:
        for each in plugins:
            load_plugin(each)
        job = read_plan(plan_path).job(number)
        with hold(Record(runs_dir / job.run)):  # before torch, so that others soon see it
            config = from_dict(job.config)
            if config.run.threads is None:
                config = replace(config, run=replace(config.run, threads=1))
            corpus = prepare(config.data)
            if run_name(config, corpus.content_hash) != job.run:
                raise RecordError(f"{job.run}: the data has changed since the plan; sweep again")
            from moebench.experiment import run_experiment  # torch, only here

            run_experiment(config, corpus, runs_dir, resume=True)
    except LockedError:
        return LOCKED
    except MoebenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _end_with(parent: int) -> None:
    """Stop this process when the one that started it is gone, whatever killed it."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    path, number, *more = sys.argv[1:]
    faulthandler.enable()
    faulthandler.register(DUMP)
    if more:
        _end_with(int(more[0]))
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(run_job(Path(path), int(number), more[1:]))
    sys.exit(130)

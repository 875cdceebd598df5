"""Jobs of a plan in this process: `python -m moebench.study PLAN ID[,ID...] [PARENT]`.

It ends when the process PARENT is gone.
"""

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from moebench.config.compose import from_dict
from moebench.config.identity import run_name
from moebench.config.schema import ExperimentConfig
from moebench.data.corpus import Corpus, prepare
from moebench.errors import LockedError, MoebenchError, RecordError
from moebench.lock import hold
from moebench.records import Record
from moebench.study.job import DUMP, GRACE, LOCKED
from moebench.study.plan import Job, read_plan

WATCH = 0.5  # seconds between looks at the parent


def run_jobs(plan_path: Path, numbers: Sequence[int]) -> int:
    """Run jobs of a plan in this process, several side by side; returns its exit code.

    A record that is there and unfinished is continued, one that is done is left as it is.
    """
    runs_dir = plan_path.parents[2]
    try:
        plan = read_plan(plan_path)
        jobs = [plan.job(number) for number in numbers]
        with ExitStack() as held:
            for job in jobs:  # before torch, so that others soon see it
                try:
                    held.enter_context(hold(Record(runs_dir / job.run)))
                except LockedError:  # of a stack, those that others train are left out
                    if len(jobs) == 1:
                        raise
            runs = [_prepared(job) for job in jobs]
            from moebench.experiment import run_experiment, run_stack  # torch, only here

            if len(runs) == 1:
                run_experiment(*runs[0], runs_dir, resume=True)
                return 0
            found = run_stack(runs, runs_dir)
    except LockedError:
        return LOCKED
    except MoebenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    errors = [each for each in found if each is not None and not isinstance(each, LockedError)]
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return 1 if errors else LOCKED if any(found) else 0


def _prepared(job: Job) -> tuple[ExperimentConfig, Corpus]:
    config = from_dict(job.config)
    if config.run.threads is None:
        config = replace(config, run=replace(config.run, threads=1))
    corpus = prepare(config.data)
    if run_name(config, corpus.content_hash) != job.run:
        raise RecordError(f"{job.run}: the data has changed since the plan; sweep again")
    return config, corpus


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
    path, numbers, *parent = sys.argv[1:]
    faulthandler.enable()
    faulthandler.register(DUMP)
    if parent:
        _end_with(int(parent[0]))
    with suppress(KeyboardInterrupt):
        sys.exit(run_jobs(Path(path), [int(each) for each in numbers.split(",")]))
    sys.exit(130)

"""Jobs of a plan in this process: `python -m moebench.study PLAN ID[,ID...] [PARENT [PLUGIN...]]`.

Several are trained at once, as a stack. It ends when the process PARENT is gone.
"""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from moebench.config.compose import from_dict
from moebench.config.identity import run_name
from moebench.config.schema import ExperimentConfig
from moebench.data.corpus import Corpus, prepare
from moebench.errors import LockedError, MoebenchError, RecordError
from moebench.lock import hold
from moebench.methods import load_plugin
from moebench.records import Record
from moebench.study.job import DUMP, GRACE, LOCKED
from moebench.study.plan import Job, read_plan
from moebench.study.status import without_run

WATCH = 0.5  # seconds between looks at the parent


def run_jobs(plan_path: Path, numbers: Sequence[int], plugins: Sequence[str] = ()) -> int:
    """Run jobs of a plan in this process; returns the first of their exit codes that is not 0.

    A record that is there and unfinished is continued, one that is done is left as it is.

    Args:
        plugins: modules with methods that the jobs need.
    """
    runs_dir = plan_path.parents[2]
    plan = read_plan(plan_path)
    jobs = [plan.job(number) for number in numbers]
    errors: list[Exception | None] = [None for _ in jobs]
    with ExitStack() as held:
        found = []
        for number, job in enumerate(jobs):
            try:
                for each in plugins:
                    load_plugin(each)
                held.enter_context(hold(Record(runs_dir / job.run)))  # before torch: others see it
                found.append((number, *_prepared(job)))
            except MoebenchError as error:
                errors[number] = error
        if found:
            from moebench.experiment import run_stack  # torch, only here

            which, configs, corpora = zip(*found, strict=True)
            for number, error in zip(which, run_stack(configs, corpora, runs_dir), strict=True):
                errors[number] = error
    codes = [0]
    for job, error in zip(jobs, errors, strict=True):
        if isinstance(error, LockedError):
            codes.append(LOCKED)
        elif isinstance(error, MoebenchError):
            run = f"{job.run}: " if len(jobs) > 1 else ""
            print(f"error: {run}{without_run(job.run, str(error))}", file=sys.stderr)
            codes.append(error.exit_code)
        elif error is not None:
            traceback.print_exception(error)
            codes.append(1)
    return next(filter(None, codes), 0)


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
    path, numbers, *more = sys.argv[1:]
    faulthandler.enable()
    faulthandler.register(DUMP)
    if more:
        _end_with(int(more[0]))
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(run_jobs(Path(path), [int(each) for each in numbers.split(",")], more[1:]))
    sys.exit(130)

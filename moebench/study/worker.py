"""Runs jobs of a plan in this process; several at once, as a stack."""

import sys
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
from moebench.plans import Job, read_plan
from moebench.records import Record, printable
from moebench.registry import load_plugin
from moebench.study.job import LOCKED
from moebench.study.status import in_sweep


def run_jobs(
    plan_path: Path, numbers: Sequence[int], plugins: Sequence[str] = (), command: str = ""
) -> int:
    """Run jobs of a plan in this process.

    An unfinished record is continued, and one that is done is left as it is.

    Args:
        plugins: modules with methods that the jobs need.
        command: the command line, for the manifests.

    Returns:
        The first exit code of a job that is not 0, or else 0.
    """
    runs_dir = plan_path.parents[2]
    plan = read_plan(plan_path)
    jobs = [plan.job(number) for number in numbers]
    errors: list[Exception | None] = [None for _ in jobs]
    with ExitStack() as held:
        prepared = []
        for number, job in enumerate(jobs):
            try:
                for plugin in plugins:
                    load_plugin(plugin)
                # locked before torch is imported, so that other processes see it early
                held.enter_context(hold(Record(runs_dir / job.run)))
                prepared.append((number, *_prepared(job)))
            except MoebenchError as error:
                errors[number] = error
        if prepared:
            from moebench.experiment import run_stack  # imports torch, which takes seconds

            which, configs, corpora = zip(*prepared, strict=True)
            results = run_stack(configs, corpora, runs_dir, command=command)
            for number, error in zip(which, results, strict=True):
                errors[number] = error
    return _report(jobs, errors)


def _report(jobs: Sequence[Job], errors: Sequence[Exception | None]) -> int:
    """Print the errors of jobs on stderr, and return the first exit code that is not 0."""
    codes = [0]
    for job, error in zip(jobs, errors, strict=True):
        if isinstance(error, LockedError):
            codes.append(LOCKED)
        elif isinstance(error, MoebenchError):
            run = f"{job.run}: " if len(jobs) > 1 else ""
            line = printable(f"error: {run}{in_sweep(job.run, str(error))}")
            print(line, file=sys.stderr)
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
        raise RecordError(
            f"{job.run}: the data or the config has changed since the plan; sweep again"
        )
    return config, corpus

"""Runs that are equal but for `train.eval_every`: they train to the same bits.

Two of their results depend on it, `router/changed` and `router/saturation`, so none stands for
another. But who has seen one knows the loss of the other, and a sweep may be typed to take them.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from moebench.config.compose import from_dict
from moebench.config.identity import run_hash
from moebench.contents import anything
from moebench.disk import read_checked
from moebench.plans import Job
from moebench.records import Record, find_records
from moebench.selections import evaluation_steps

KEY = "train.eval_every"


class Other(NamedTuple):
    """A run that has begun, and is that of a job but for `train.eval_every`."""

    job: Job
    record: Record
    every: int

    @property
    def serves(self) -> bool:
        """Whether it is done, with all evaluations of the job."""
        steps, every = self.job.steps, self.job.config["train"]["eval_every"]
        has, asked = ({*evaluation_steps(steps, each)} for each in (self.every, every))
        return asked <= has and self.record.is_done()


def others(jobs: Sequence[Job], runs_dir: Path) -> Iterator[Other]:
    """The runs of a directory that are those of jobs but for `train.eval_every`."""
    named: dict[str, dict[str, Record]] = defaultdict(dict)
    for record in find_records(runs_dir):
        stem, digest = _parts(record.name)
        named[stem][digest] = record
    # few, of many records: a hash of a config takes longer than to read a manifest
    kinds: dict[str, dict[tuple[str | None, int | None], None]] = {}
    for job in jobs:
        stem, own = _parts(job.run)
        config = from_dict(job.config)
        if stem not in kinds:
            kinds[stem] = dict.fromkeys(map(_science, named[stem].values()))
        for data, every in kinds[stem]:
            if data is None or every in (None, config.train.eval_every):
                continue
            other = replace(config, train=replace(config.train, eval_every=every))
            record = named[stem].get(run_hash(other, data))
            if record and run_hash(config, data) == own:
                yield Other(job, record, every)


def _parts(run: str) -> tuple[str, str]:
    """The name of a run: what it is called, and its hash."""
    stem, _, digest = run.rpartition("-")
    return stem, digest


def _science(record: Record) -> tuple[str | None, int | None]:
    """The hash of a run's data, and `train.eval_every`; None where its manifest does not tell."""
    science = read_checked(record.path / "manifest.json", anything)[0].get("science")
    known = science if isinstance(science, dict) else {}
    data, every = known.get("data"), known.get(KEY)
    return data if isinstance(data, str) else None, every if isinstance(every, int) else None

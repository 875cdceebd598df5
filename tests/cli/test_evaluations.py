"""Runs that are equal but for `train.eval_every`: what a sweep says of them. None is trained."""

from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from moebench.cli.sweep import _print_others
from moebench.config.compose import Composer, from_dict
from moebench.config.identity import science
from moebench.data.corpus import prepare
from moebench.errors import ConfigError
from moebench.evaluations import others
from moebench.plans import Plan
from moebench.records import Record
from moebench.registration import refuse_begun
from moebench.study import make_plan

Planned = Callable[..., Plan]


@pytest.fixture
def planned(small: list[str]) -> Planned:
    def made(*words: str) -> Plan:
        return make_plan(Composer(), [*small, "scope=micro,global", "seed=0", *words])

    return made


@pytest.fixture
def runs(tmp_path: Path, small: list[str]) -> Path:
    """Two runs of 6 steps that were evaluated after 3, too; that of micro is done."""
    words = [*small, "scope=micro,global", "seed=0", "train.eval_every=3"]
    plan = make_plan(Composer(), words)
    for job in plan.jobs:
        record, config = Record(tmp_path / "runs" / job.run), from_dict(job.config)
        record.begin("", {"science": science(config, prepare(config.data).content_hash)})
        if job.arm == "micro":
            record.seal({"status": "done"})
    Record(tmp_path / "runs" / f"{plan.jobs[0].run[:-1]}x").begin("", {})
    return tmp_path / "runs"


def printed(plan: Plan, runs: Path) -> str:
    out = StringIO()
    launcher: Any = SimpleNamespace(waiting=plan.jobs, runs_dir=runs)
    _print_others(launcher, Console(file=out, width=300))
    return out.getvalue()


def test_a_sweep_names_done_runs_with_more_evaluations(planned: Planned, runs: Path) -> None:
    found = [(other.job.arm, other.every, other.serves) for other in others(planned().jobs, runs)]
    assert sorted(found) == [("global", 3, False), ("micro", 3, True)]
    assert printed(planned(), runs).startswith(
        "1 of the runs to train are done with train.eval_every=3, which has all evaluations of "
        "these: type train.eval_every=3 to take them"
    )


@pytest.mark.parametrize("word", ["train.eval_every=2", "train.eval_every=3", "loss.balance=0.5"])
def test_it_names_none_that_lack_an_evaluation_or_differ_otherwise(
    planned: Planned, runs: Path, word: str
) -> None:
    assert printed(planned(word), runs) == ""


def test_seeds_that_were_seen_with_other_evaluations_are_refused(
    planned: Planned, runs: Path
) -> None:
    with pytest.raises(ConfigError, match="--register: 2 runs have begun before; take seeds"):
        refuse_begun(planned(), runs, "--register")
    with pytest.raises(ConfigError, match=r"micro-s0-\w+ \(train\.eval_every=3\) has begun before"):
        refuse_begun(replace(planned(), jobs=planned().jobs[:1]), runs, "--register")
    refuse_begun(planned("loss.balance=0.5"), runs, "--register")

"""Which jobs are trained side by side; a sweep of stacks leaves the records of one by one."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moebench.config.compose import Composer, to_dict
from moebench.errors import ConfigError
from moebench.records import find_records
from moebench.study import Job, stacking
from moebench.study.stacking import arm_bytes, take_stack
from tests.results import results

COMPOSER = Composer()


def job(number: int, *overrides: str) -> Job:
    config: dict[str, Any] = to_dict(COMPOSER.compose(list(overrides)))
    return Job(number, f"run-{number}", "arm", "0", 0, overrides, config)


def test_a_stack_is_of_one_shape_and_of_the_size_that_was_asked_for():
    four = "run.stack=4"
    jobs = [
        job(0, four),
        job(1, four, "scope=micro", "seed=3", "optim.lr=1e-4"),
        job(2, four, "model.top_k=1"),
        job(3, four, "balance.estimator=stale"),
        job(4, four, "seq_len=64"),
        job(5, four, "loss.z=0.1"),
        job(6, four, "seed=9"),
    ]
    assert [each.id for each in take_stack(jobs)] == [0, 1, 3, 5]
    assert [each.id for each in take_stack(jobs[2:])] == [2]


def test_auto_stacks_as_far_as_the_memory_of_a_gpu_goes(monkeypatch: pytest.MonkeyPatch):
    jobs = [job(number, f"seed={number}") for number in range(80)]
    assert len(take_stack(jobs)) == 1
    one = arm_bytes(COMPOSER.compose([]))
    for free, size in ((0, 1), (one, 1), (10 * one, 8), (10**15, 1023 // 16)):
        monkeypatch.setattr(stacking, "free_gpu_bytes", lambda free=free: free)
        assert len(take_stack(jobs)) == size
    on_cpu = [job(number, "run.device=cpu", f"seed={number}") for number in range(3)]
    assert len(take_stack(on_cpu)) == 1


@pytest.mark.parametrize("stack", ["0", "-1", "many", "1.5"])
def test_a_stack_that_is_no_number(stack: str):
    with pytest.raises(ConfigError, match=f"run.stack={stack}: must be a"):
        COMPOSER.compose([f"run.stack={stack}"])


def test_a_stack_that_no_grouped_product_takes():
    with pytest.raises(ConfigError, match=r"use at most run\.stack=63, or run\.device=cpu"):
        COMPOSER.compose(["run.stack=64"])
    COMPOSER.compose(["run.stack=64", "run.device=cpu"])


def test_a_sweep_of_stacks_leaves_the_same_records(text_folder: Path, tmp_path: Path):
    words = [
        *("model=smoke", "train.steps=4", "global_bsz=8", "seq_len=16", "data.valid_sequences=2"),
        *("data=folder", f"data.path={text_folder}", "run.device=cpu", "scope=micro,global"),
        *("seed=0,1", "run.checkpoint_every=2"),
    ]
    for stack in (1, 3):
        runs = tmp_path / str(stack)
        sweep = [sys.executable, "-m", "moebench.cli", "sweep", *words, f"run.stack={stack}"]
        sweep += ["--runs-dir", str(runs), "--jobs", "1"]
        done = subprocess.run(sweep, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
    alone, stacked = (find_records(tmp_path / str(each)) for each in (1, 3))
    assert len(alone) == len(stacked) == 4
    assert sorted(each.manifest()["stack"] for each in stacked) == [1, 3, 3, 3]
    for one, other in zip(alone, stacked, strict=True):
        assert one.name == other.name
        of_one, of_other = results(one), results(other)
        assert of_one.pop("config") != of_other.pop("config")  # run.stack
        assert of_one == of_other

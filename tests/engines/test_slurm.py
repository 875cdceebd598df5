"""A sweep that leaves and comes back, jobs that are requeued, and clusters that are wrong."""

import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from moebench.study.engines.with_submitit import handed_in
from tests.engines.six_arms import CANCELLED, Sweep, finished
from tests.engines.slurm import Slurm
from tests.engines.test_six_arms import job_of, needs, needs_slurm
from tests.processes import until

pytestmark = [pytest.mark.slow, needs("submitit"), needs_slurm]
WORDS = ("--launcher", "submitit", "--engine", "timeout_min=10")


@pytest.fixture(scope="module")
def unaccounted() -> Iterator[Slurm]:
    """A cluster that keeps no accounts: `sacct` fails there."""
    folder = Path(tempfile.mkdtemp(prefix="slurm"))
    with Slurm(folder, accounts=False) as cluster:
        yield cluster
    shutil.rmtree(folder)


def test_a_sweep_leaves_is_requeued_and_comes_back(
    tmp_path: Path, text_folder: Path, unaccounted: Slurm
) -> None:
    """One job is preempted, as submitit does it, and one is cancelled before it began."""
    sweep = Sweep(tmp_path, text_folder, *WORDS, environ=unaccounted.environ)
    left = sweep.run("--detach")
    print(left.errors)
    assert left.code == 0
    assert "6 runs are with the engine" in left.errors
    print(unaccounted.ask("squeue", "-r"))
    preempted, cancelled = job_of(sweep, CANCELLED), job_of(sweep, "domain")
    unaccounted.ask("scancel", cancelled)
    until(lambda: sweep.step(CANCELLED) >= 3, 300)
    before = sweep.record(CANCELLED).manifest()["start"]
    unaccounted.ask("scancel", "--signal=USR2", preempted)
    until(lambda: sweep.states()[CANCELLED] == "stopped", 60)
    sweep.calm()
    back = sweep.run()
    print(back.errors, sweep.table(), unaccounted.ask("squeue", "-r", "-t", "all"))
    assert back.code == 0, back.errors
    assert set(sweep.states().values()) == {"done"}
    assert sweep.record(CANCELLED).manifest()["start"] == before, "it went on from its checkpoint"
    [folder] = sweep.runs.glob("studies/*/submitit")
    jobs = [entry["job"] for entry in handed_in(folder)]
    assert job_of(sweep, CANCELLED) == preempted, "the requeued job was awaited, not doubled"
    assert len(jobs) > 6, "the one that was cancelled was handed in again"


def test_a_partition_that_is_not_there_is_named(
    tmp_path: Path, text_folder: Path, unaccounted: Slurm
) -> None:
    words = (*WORDS, "--engine", "slurm_partition=gpus")
    sweep = Sweep(tmp_path, text_folder, *words, environ=unaccounted.environ)
    ended = sweep.run()
    assert ended.code == 2
    error = ended.errors.splitlines()[-1]
    assert error.startswith("error: --launcher submitit: sbatch: error: ")
    assert "invalid partition specified: gpus" in ended.errors
    assert "slurm_partition=gpus" in error


def test_ctrl_c_cancels_the_jobs(tmp_path: Path, text_folder: Path, unaccounted: Slurm) -> None:
    sweep = Sweep(tmp_path, text_folder, *WORDS, environ=unaccounted.environ)
    started = sweep.start()
    until(lambda: sweep.step(CANCELLED) >= 3, 300)
    started.send_signal(2)
    ended = finished(started)
    assert ended.code == 130, ended.errors
    assert "stopped by SIGTERM at step" in sweep.reasons()[CANCELLED]
    until(lambda: unaccounted.ask("squeue", "-h") == "", 60)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root hides a folder from a process")
def test_workers_that_do_not_see_the_plan_are_found_within_a_minute(
    tmp_path: Path, text_folder: Path
) -> None:
    hidden = tmp_path / "runs"
    hidden.mkdir()
    hide = f'mount -t tmpfs none {shlex.quote(str(hidden))} && exec "$@"'
    folder = Path(tempfile.mkdtemp(prefix="slurm"))
    with Slurm(folder, accounts=False, wrap=("unshare", "-m", "sh", "-c", hide, "sh")) as cluster:
        sweep = Sweep(tmp_path, text_folder, *WORDS, environ=cluster.environ)
        began = time.monotonic()
        ended = sweep.run()
        print(ended.errors)
    shutil.rmtree(folder)
    assert ended.code == 3
    assert ended.errors.count(f"it wrote nothing, so do the workers see {hidden}?") == 6
    assert time.monotonic() - began < 120, "most of which the start of the sweep takes"

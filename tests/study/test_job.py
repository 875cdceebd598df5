"""One job, in this process or in a child process."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moebench.config.compose import Composer
from moebench.lock import hold
from moebench.records import Record
from moebench.study import make_plan, read_plan
from moebench.study.job import LOCKED, Attempt
from moebench.study.status import last_status
from moebench.study.worker import run_jobs
from tests.processes import is_alive, until

Small = Callable[..., list[str]]


@pytest.fixture
def one_job(small: Small, tmp_path: Path) -> Path:
    words = small("seed=choice(3)", "train.steps=2", "run.device=cpu")
    return make_plan(Composer(), words).write(tmp_path / "runs")


def test_a_job_trains_its_run_with_one_thread(one_job: Path, tmp_path: Path) -> None:
    assert run_jobs(one_job, [0]) == 0
    record = Record(tmp_path / "runs" / read_plan(one_job).jobs[0].run)
    assert record.is_done()
    assert record.damage() == []
    assert record.manifest()["threads"] == 1
    assert record.manifest()["seed"] == 3
    before = record.summary()
    assert run_jobs(one_job, [0]) == 0
    assert record.summary() == before


def test_a_job_whose_data_changed_is_refused(
    one_job: Path, capsys: pytest.CaptureFixture[str], text_folder: Path
) -> None:
    content = json.loads(one_job.read_text())
    content["runs"][0]["config"]["\n\x1b[2J"] = 1
    one_job.write_text(json.dumps(content))
    assert run_jobs(one_job, [0]) == 2
    assert capsys.readouterr().err.startswith("error: \ufffd\ufffd[2J=1: no such key; ")
    del content["runs"][0]["config"]["\n\x1b[2J"]
    content["runs"][0]["run"] = "global-s3-0000000000"
    one_job.write_text(json.dumps(content))
    assert run_jobs(one_job, [0]) == 2
    said = "error: the data or the config has changed since the plan; sweep again\n"
    assert capsys.readouterr().err == said
    assert not (one_job.parents[2] / "global-s3-0000000000").exists()


def test_a_pipe_in_the_place_of_a_log_is_not_waited_for(one_job: Path) -> None:
    job = read_plan(one_job).jobs[0]
    (one_job.parent / "logs").mkdir()
    os.mkfifo(one_job.parent / "logs" / f"{job.run}.log")
    with pytest.raises(OSError, match="is not a regular file"):
        Attempt(one_job, job)


def test_a_job_whose_run_another_process_trains_leaves_it_alone(
    one_job: Path, tmp_path: Path
) -> None:
    record = Record(tmp_path / "runs" / read_plan(one_job).jobs[0].run)
    with hold(record):
        command = [sys.executable, "-X", "importtime", "-m", "moebench.study", str(one_job), "0"]
        done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (LOCKED, "")
    assert " torch\n" not in done.stderr
    assert not record.path.exists()


@pytest.mark.slow
def test_a_job_ends_when_its_parent_ends(small: Small, tmp_path: Path) -> None:
    words = small("seed=choice(3)", "train.steps=1000000", "data.max_epochs=1e9", "run.device=cpu")
    path = make_plan(Composer(), words).write(tmp_path / "runs")
    code = (
        "import sys, time; from pathlib import Path; from moebench.study.child import start\n"
        "process = start('moebench.study', [sys.argv[1], '0'], Path('log'))\n"
        "print(process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert parent.stdout is not None
    with parent.stdout:
        child = int(parent.stdout.readline())
    record = Record(path.parents[2] / read_plan(path).jobs[0].run)
    until(lambda: last_status(record)["step"] > 0, 60)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until(lambda: not is_alive(child))
    assert record.status()["state"] == "stopped"
    assert "stopped by SIGTERM at step" in record.status()["reason"]

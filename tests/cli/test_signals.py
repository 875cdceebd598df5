"""Signals and closed pipes. The command line runs in a child process."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from moebench.errors import ConfigError
from moebench.records import Record
from tests.calls import STOPPING, Call
from tests.processes import Process, is_alive, moebench

STOPS = [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 75, marks=pytest.mark.slow)]
ENDLESS = ("train.steps=1000000", "data.max_epochs=1e9", "run.checkpoint_every=1000000")


def start(small: list[str], *words: str) -> Process:
    kept = [each for each in small if not each.startswith("train.steps")]
    return moebench(*words, *kept, *ENDLESS)


def under_way(count: int) -> list[Record]:
    """Wait until `count` runs have each made some steps, and return their records."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        records = [Record(path) for path in Path("runs").glob("global-*")]
        if [record.status()["step"] > 2 for record in records] == [True] * count:
            return records
        time.sleep(0.05)
    raise AssertionError("no run made a step")


@pytest.mark.parametrize(("number", "code"), STOPS)
def test_a_run_that_is_stopped_can_be_resumed(
    call: Call, small: list[str], number: signal.Signals, code: int
) -> None:
    process = start(small, "train")
    [record] = under_way(1)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    step = record.status()["step"]
    reason = f"{record.path}: stopped by {number.name} at step {step}; --resume continues"
    assert err.splitlines()[-1] == f"error: {reason}"
    assert "Traceback" not in err
    assert record.status()["state"] == "stopped"
    assert record.status()["reason"] == reason
    assert (record.path / "checkpoints" / f"step-{step}" / "state.json").is_file()


@pytest.mark.parametrize(("number", "code"), STOPS)
def test_a_sweep_that_is_stopped_leaves_no_process_and_can_be_resumed(
    call: Call, small: list[str], number: signal.Signals, code: int
) -> None:
    process = start(small, "sweep", "seed=0,1", "--jobs", "2")
    records = under_way(2)
    started = [record.status()["pid"] for record in records]
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert err.splitlines()[-1].startswith(f"error: stopped by {number.name}; ")
    assert "Traceback" not in err
    assert len({*started, process.pid}) == 3
    assert not any(map(is_alive, started))
    for record in records:
        status = record.status()
        assert status["state"] == "stopped"
        assert (record.path / "checkpoints" / f"step-{status['step']}").is_dir()


@pytest.mark.slow
def test_a_killed_run_leaves_the_other_and_the_next_sweep_finishes_it(
    call: Call, small: list[str], tmp_path: Path
) -> None:
    words = ["sweep", *small, "train.steps=150", "data.max_epochs=100", "seed=0,1"]
    words.remove("train.steps=6")
    process = moebench(*words, "--jobs", "2")
    records = under_way(2)
    os.kill(records[0].status()["pid"], signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 3
    assert err.splitlines()[-1] == f"error: {records[0].name}: killed by signal 9 (Killed)"
    assert records[0].status()["state"] == "failed"
    assert records[0].status()["reason"] == "killed by signal 9 (Killed)"
    assert records[1].damage() == []
    before = (records[1].path / "summary.json").stat().st_mtime_ns
    assert call(*words).code == 0
    assert records[0].damage() == []
    assert (records[1].path / "summary.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("number", STOPPING, ids=lambda number: number.name)
def test_a_signal_before_a_run_has_begun_is_one_line(
    call: Call, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(
        "moebench.config.compose.Composer.__init__", lambda *_: os.kill(os.getpid(), number)
    )
    result = call("train")
    assert result.code == (130 if number == signal.SIGINT else 75)
    assert result.err.startswith(f"error: stopped by {number.name}; ")
    assert result.err.count("\n") == 1
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("error", [ConfigError, AttributeError])
def test_an_error_that_a_library_makes_of_a_signal_is_no_bug(
    call: Call, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """An interrupt within a change of its own left OmegaConf, and a reader, in disorder."""

    def compose(*_: object) -> None:
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        raise error("'NoneType' object has no attribute 'x'")

    monkeypatch.setattr("moebench.config.compose.Composer.__init__", compose)
    result = call("train")
    assert result.code == 75
    assert result.err.startswith("error: stopped by SIGTERM; ")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("reader", ["head -1", "true"])
@pytest.mark.parametrize("words", ["--help", "train --print-config", "data show"])
def test_a_pipe_that_is_closed_early_is_no_error(
    call: Call, small: list[str], words: str, reader: str
) -> None:
    data = [each for each in small if each.startswith("data")]
    call("data", "prepare", *data)  # so that the command below prints no progress
    more = data if words != "--help" else []
    command = [sys.executable, "-m", "moebench.cli", *words.split(), *more]
    shell = f'exec 3>&1; ("$@"; echo $? >&3) | {reader} > /dev/null'
    done = subprocess.run(["sh", "-c", shell, "sh", *command], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.strip() in ("0", "1")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_one_line() -> None:
    command = [sys.executable, "-m", "moebench.cli", "train", "--print-config"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")


SERVER = """
import sys
sys.modules["moebench.experiment"] = None  # without torch
import moebench.study.server
raise {}
"""


@pytest.mark.parametrize("error", ["EOFError", "OSError"])
def test_a_server_that_loses_a_request_half_way_shows_no_trace(error: str) -> None:
    """Its sweep was stopped while it asked for a job."""
    words = [sys.executable, "-c", SERVER.format(error)]
    child = subprocess.run(words, capture_output=True, text=True)
    assert (child.returncode, "Traceback" in child.stderr) == (1, error == "OSError")

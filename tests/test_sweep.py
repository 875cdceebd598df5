"""Whole sweeps in child processes: failures of runs, of the sweep or of the disk lose nothing."""

import json
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moebench.records import Record
from moebench.study.status import in_sweep
from tests.processes import Process, moebench, until
from tests.results import results

# Python imports `sitecustomize` when it starts; this one makes processes of a test fail.
TROUBLE = """
import ctypes, errno, os, signal, sys, time
from moebench.records import Record

def hang():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(60)

def fill_the_disk():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

def fail():
    raise ArithmeticError("of two\\nlines")

append = Record.append

def troubled(self, row):
    append(self, row)
    for seed, trouble in TROUBLES.items():
        if row["step"] == 3 and f"-s{seed}-" in self.name:
            trouble()

Record.append = troubled
"""
FAST_GRACE = "import moebench.study.job\nmoebench.study.job.GRACE = 1.0\n"
# Runs wait at their third step until the file `go` exists, and then train slowly.
PACED = """
import os, time
from moebench.records import Record

append = Record.append

def paced(self, row):
    append(self, row)
    while row["step"] == 3 and not os.path.exists("go"):
        time.sleep(0.02)
    time.sleep(0.02)

Record.append = paced
"""

Start = Callable[..., Process]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory; at the end, no process may still use it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def trouble(place: Path, code: str) -> dict[str, str]:
    """The environment of processes that run `code` when they start."""
    folder = place / "trouble"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(code)
    return {**os.environ, "PYTHONPATH": str(folder)}


@pytest.fixture
def start(place: Path, text_folder: Path) -> Iterator[Start]:
    """Start the command line on small runs; its processes are ended after the test."""
    begun = []

    def made(
        command: str, *words: str, steps: int = 6, env: dict[str, str] | None = None
    ) -> Process:
        small = [
            *("model=smoke", f"train.steps={steps}", "global_bsz=8", "seq_len=32"),
            *("train.eval_every=100", "data.valid_sequences=4", "data.max_epochs=1000"),
            *("data=folder", f"data.path={text_folder}", "run.device=cpu", "run.log_every=1"),
            "run.checkpoint_every=7",
        ]
        process = moebench(command, *small, *words, env=env)
        begun.append(process)
        return process

    yield made
    for process in begun:
        process.kill()
        process.communicate()
    until(lambda: not jobs(place))


def jobs(place: Path) -> list[int]:
    """The processes of jobs, and the servers that fork them, in a working directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            forked = b"multiprocessing.forkserver" in (path / "cmdline").read_bytes()
            if forked and Path(os.readlink(path / "cwd")) == place:
                found.append(int(path.name))
        except OSError:  # it ended in the meantime
            continue
    return found


def finish(process: Process, code: int = 0) -> tuple[str, list[str]]:
    """The stdout of a process, and its error lines."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    assert "Traceback" not in err
    return out, [line for line in err.splitlines() if line.startswith("error: ")]


def records(runs: Path) -> list[Record]:
    return [Record(path.parent) for path in sorted(runs.glob("*/config.yaml"))]


def seed_of(record: Record) -> str:
    return record.name.rpartition("-")[0].rpartition("-s")[2]


def under_way(place: Path) -> list[Record]:
    """The runs that have reached the step at which PACED makes them wait."""
    found = [run for run in records(place / "runs") if (run.path / "metrics.jsonl").exists()]
    return [record for record in found if any(row["step"] == 3 for row in record.rows())]


def was_heard(runs: Path, since: float) -> bool:
    """Whether some run has written its status since a time."""
    return any(record.status().get("heartbeat", 0.0) > since for record in records(runs))


# What happens to a run at its third step -> the reason that is reported, and its state.
TROUBLES = {
    "fail": ("ArithmeticError: of two lines", "failed"),
    "lambda: os.kill(os.getpid(), signal.SIGKILL)": ("killed by signal 9 (Killed)", "failed"),
    "lambda: ctypes.string_at(0)": ("killed by signal 11 (Segmentation fault)", "failed"),
    "fill_the_disk": ("cannot be written (No space left on device: ", "failed"),
}
MORE = {
    "lambda: os._exit(5)": ("exit code 5", "failed"),
    "lambda: os.kill(os.getpid(), signal.SIGTERM)": ("stopped by SIGTERM at step 3; ", "stopped"),
    "hang": ("completed no step for 30 s (--timeout) after step ", "failed"),
}


@pytest.mark.parametrize(
    ("troubles", "options"),
    [
        (TROUBLES, ()),
        pytest.param(TROUBLES | MORE, ("--timeout", "30s"), marks=pytest.mark.slow),
    ],
    ids=["four", "seven"],
)
def test_failed_runs_do_not_stop_the_others_and_the_next_sweep_finishes_them(
    place: Path, start: Start, troubles: dict[str, tuple[str, str]], options: tuple[str, ...]
) -> None:
    table = ", ".join(f"{seed}: {trouble}" for seed, trouble in enumerate(troubles))
    env = trouble(place, f"{FAST_GRACE}{TROUBLE}\nTROUBLES = {{{table}}}\n")
    seeds = f"seed=range({len(troubles) + 1})"
    process = start("sweep", seeds, "--jobs", "3", *options, env=env)
    _, errors = finish(process, 3)
    until(lambda: not jobs(place))
    assert len(errors) == len(troubles)
    found = {seed_of(run): run for run in records(place / "runs")}
    assert found.pop(str(len(troubles))).damage() == []
    told = {error.removeprefix("error: ").split("-s")[1][0]: error for error in errors}
    for seed, (reason, state) in enumerate(troubles.values()):
        record = found[str(seed)]
        assert reason in told[str(seed)]
        status = record.status()
        assert (status["state"], status["steps"]) == (state, 6)
        said = in_sweep(record.name, " ".join(status["reason"].split()))
        assert told[str(seed)] == f"error: {record.name}: {said}"

    shown = start("sweep", seeds, "--status")
    table, _ = finish(shown)
    states = [state for _, state in troubles.values()]
    *rows, last = table.splitlines()
    assert len([row for row in rows if " failed " in row]) == states.count("failed")
    stopped = ", 1 stopped" if "stopped" in states else ""
    assert last.endswith(f": 1 done, {states.count('failed')} failed{stopped}")
    assert finish(start("sweep", seeds, "--jobs", "3"))[1] == []
    assert [record.damage() for record in records(place / "runs")] == [[]] * (len(troubles) + 1)


def test_the_log_shows_where_a_run_crashed(place: Path, start: Start) -> None:
    env = trouble(place, f"{TROUBLE}\nTROUBLES = {{0: lambda: ctypes.string_at(0)}}\n")
    finish(start("sweep", "seed=choice(0)", env=env), 3)
    [log] = place.glob("runs/studies/*/logs/*.log")
    assert "Fatal Python error: Segmentation fault" in log.read_text()
    assert 'sitecustomize.py", line' in log.read_text()


def test_two_sweeps_share_the_work(place: Path, start: Start) -> None:
    env = trouble(place, PACED)
    words = ("sweep", "seed=0,1,2", "--jobs", "1")
    first = start(*words, steps=20, env=env)
    until(lambda: len(under_way(place)) == 1)
    # the same runs in another order, and more of them
    second = start("sweep", "seed=3,2,1,0", "--jobs", "1", steps=20, env=env)
    until(lambda: len(under_way(place)) == 2)
    one, other = under_way(place)
    assert one.status()["pid"] != other.status()["pid"]
    refused = start("train", "--resume", "seed=0", steps=20)
    _, [error] = finish(refused, 2)
    owner = f"process {one.status()['pid']} on {socket.gethostname()}"
    said = f"error: runs/{one.name}: another process is training it ({owner}); wait for it"
    assert error == said
    out, _ = finish(start("sweep", "seed=3,2,1,0", "--status", "--json", steps=20))
    states = [run["state"] for run in json.loads(out)["runs"]]
    assert len(states) == 4
    assert states.count("running") == 2
    (place / "go").touch()
    assert finish(first)[1] == []
    assert finish(second)[1] == []
    found = records(place / "runs")
    assert [record.damage() for record in found] == [[]] * 4
    assert not any("resumed" in record.manifest() for record in found), "each was trained once"


def test_a_sweep_continues_the_runs_of_a_sweep_that_died(place: Path, start: Start) -> None:
    env = trouble(place, PACED)
    words = ("sweep", "seed=0,1", "--jobs", "1")
    first = start(*words, steps=200, env=env)
    until(lambda: len(under_way(place)) == 1)
    second = start(*words, steps=200, env=env)
    until(lambda: len(under_way(place)) == 2)
    first.kill()
    (place / "go").touch()
    _, errors = finish(second)
    assert errors == []
    one, other = records(place / "runs")
    assert [one.damage(), other.damage()] == [[], []]
    assert len(one.manifest()["resumed"]) == 1
    assert "resumed" not in other.manifest()


@pytest.mark.parametrize(
    ("numbers", "runs"),
    [
        ([signal.SIGKILL] * 2, 2),
        pytest.param([signal.SIGKILL] * 10, 6, marks=pytest.mark.slow),
        pytest.param(
            [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1],
            3,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["two kills", "ten kills", "signals"],
)
def test_a_sweep_that_is_stopped_many_times_has_the_results_of_an_uninterrupted_one(
    place: Path, start: Start, numbers: list[signal.Signals], runs: int
) -> None:
    """Stopped at random times during training and start, in turn, with and without its runs."""
    env = trouble(place, PACED)
    (place / "go").touch()
    words = ("sweep", f"seed=range({runs})", "--jobs", "2")
    finish(start(*words, "--runs-dir", "whole", steps=250, env=env))
    draw = random.Random(0)
    for count, number in enumerate(numbers):
        began = time.time()
        process = start(*words, "--runs-dir", "cut", steps=250, env=env)
        if count % 2 == 0:
            until(lambda began=began: was_heard(place / "cut", began))
        time.sleep(draw.uniform(0, 4 if count % 2 else 2))
        assert process.poll() is None, "there is more work than all these moments have time for"
        process.send_signal(number)
        if number == signal.SIGKILL and count % 4 in (1, 2):
            for pid in jobs(place):
                os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=60)
        expected = {signal.SIGINT: {130}, signal.SIGTERM: {75}, signal.SIGUSR1: {75}}
        expected[signal.SIGHUP] = {75}
        # before Python handles signals, a signal ends the process directly
        assert process.returncode in expected.get(number, set()) | {-number}
    until(lambda: not jobs(place))
    out, _ = finish(start(*words, "--runs-dir", "cut", "--status", "--json", steps=250))
    assert {run["state"] for run in json.loads(out)["runs"]} <= {"waiting", "stopped", "done"}
    assert finish(start(*words, "--runs-dir", "cut", steps=250, env=env))[1] == []
    found = {record.name: results(record) for record in records(place / "cut")}
    assert found == {record.name: results(record) for record in records(place / "whole")}
    assert len(found) == runs
    resumed = [record.manifest().get("resumed", []) for record in records(place / "cut")]
    print(f"{len(numbers)} signals, {runs} runs, continued {sum(map(len, resumed))} times")
    assert any(resumed)


# Stacks


@pytest.mark.slow
def test_a_stack_that_is_killed_and_partly_fails_ends_as_one_that_nothing_stopped(
    place: Path, start: Start
) -> None:
    """Two of four arms fail. A stack rounds as single runs do on some processors only."""
    env = trouble(place, PACED)
    words = ("sweep", "seed=0,1", "optim.lr=0.003,1e30", "--jobs", "1")
    stacked = (*words, "run.stack=4", "--runs-dir", "runs")
    first = start(*stacked, steps=20, env=env)
    until(lambda: len(under_way(place)) == 1)  # the others wait in it
    [pid] = {record.status()["pid"] for record in records(place / "runs")}  # trains them all
    os.kill(pid, signal.SIGKILL)
    first.kill()
    (place / "go").touch()
    out, _ = finish(start(*stacked, "--status", "--json", steps=20))
    assert {run["state"] for run in json.loads(out)["runs"]} <= {"stopped", "failed"}
    _, errors = finish(start(*stacked, steps=20, env=env), 3)
    assert len(errors) == 2
    assert all("s0" in error or "s1" in error for error in errors)
    finish(start(*words, "run.stack=4", "--runs-dir", "whole", steps=20), 3)
    for record in records(place / "whole"):
        other = Record(place / "runs" / record.name)
        assert record.is_done() == other.is_done()
        if record.is_done():
            one, two = results(record), results(other)
            assert one == two
            assert other.manifest()["resumed"][-1]["stacked"] == 4
        else:
            assert record.status()["reason"] == other.status()["reason"]


def test_a_run_that_ends_its_stack_stops_no_other_run(place: Path, start: Start) -> None:
    env = trouble(place, f"{TROUBLE}\nTROUBLES = {{1: lambda: os.kill(os.getpid(), 9)}}\n")
    _, [error] = finish(start("sweep", "seed=0,1,2", "run.stack=3", env=env), 3)
    assert error.endswith("killed by signal 9 (Killed)")
    states = {seed_of(record): record.is_done() for record in records(place / "runs")}
    assert states == {"0": True, "1": False, "2": True}

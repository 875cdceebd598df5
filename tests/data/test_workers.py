"""Processes that share work: they fail as one, end with their parent and run no script again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moebench.data.making.workers import in_processes
from moebench.errors import DataError
from tests.calls import is_running


def double(number: int) -> int:
    print("a worker's print is no data")
    return 2 * number


def fail_or_sleep(number: int) -> None:
    if number == 0:
        raise DataError("data.path=x: is broken")
    time.sleep(60)


def be_killed(number: int) -> None:
    if number == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def note_and_sleep(folder: str) -> None:
    Path(folder, str(os.getpid())).touch()
    time.sleep(60)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_results_come_in_the_order_of_tasks(processes: int):
    progress: list[set[int]] = []
    results = in_processes(double, [(n,) for n in range(5)], processes, progress.append)
    assert results == [0, 2, 4, 6, 8]
    assert progress[-1] == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("work", "error"),
    [(fail_or_sleep, "^data.path=x: is broken$"), (be_killed, "was killed, .* --jobs 1$")],
)
def test_an_error_stops_every_process_at_once(work, error: str):
    began = time.monotonic()
    with pytest.raises(DataError, match=error):
        in_processes(work, [(n,) for n in range(4)], 2, lambda _: None)
    assert time.monotonic() - began < 30


# The rest runs a script without `if __name__ == "__main__"`, as a user may write one.
SCRIPT = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
sys.path.insert(0, {tests!r})
from test_workers import double, note_and_sleep
from moebench.data.making.workers import in_processes
print("script")
"""


def start(tmp_path: Path, last_line: str) -> subprocess.Popen[str]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)) + last_line)
    return subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_the_users_script_is_not_run_again_and_stdout_is_its_own(tmp_path: Path):
    process = start(tmp_path, "print(in_processes(double, [(1,), (2,), (3,)], 2, lambda _: None))")
    output, errors = process.communicate(timeout=60)
    assert output == "script\n[2, 4, 6]\n"
    # in any order: text and line end of a print are two writes
    assert errors.count("a worker's print is no data") == 3
    assert not errors.replace("a worker's print is no data", "").strip()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_processes_end_with_their_parent(tmp_path: Path, number: int):
    (tmp_path / "pids").mkdir()
    task = (str(tmp_path / "pids"),)
    process = start(tmp_path, f"in_processes(note_and_sleep, [{task}] * 4, 2, lambda _: None)")
    deadline = time.monotonic() + 60
    while len(pids := os.listdir(tmp_path / "pids")) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(pids) == 2
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does at Ctrl-C
    else:
        process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert errors.count("Traceback") == (number == signal.SIGINT), "the parent's alone"
    while any(map(is_running, map(int, pids))) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, map(int, pids)))

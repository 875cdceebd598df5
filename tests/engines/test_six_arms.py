"""Six arms on each engine: one raises, two crash, one is cancelled, and two finish."""

import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moebench.plans import read_plan
from moebench.study.engines.with_submitit import FOLDER, handed_in
from tests.engines.six_arms import (
    ARMS,
    CANCELLED,
    FINISH,
    KILLED,
    RAISES,
    SEGFAULTS,
    Sweep,
    finished,
)
from tests.engines.slurm import Slurm, missing
from tests.processes import until

pytestmark = pytest.mark.slow


def needs(library: str) -> pytest.MarkDecorator:
    lacking = importlib.util.find_spec(library) is None
    return pytest.mark.skipif(lacking, reason=f"{library} is not installed")


needs_slurm = pytest.mark.skipif(bool(missing()), reason=f"there is no {', '.join(missing())}")


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    folder = Path(tempfile.mkdtemp(prefix="slurm"))
    with Slurm(folder) as cluster:
        yield cluster
    shutil.rmtree(folder)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    print(*(path.read_text() for path in tmp_path.glob("runs/studies/*/logs/*")), sep="\n")


def check(sweep: Sweep, cancel: Callable[[], object]) -> None:
    """Run the six arms, cancel one, and run them again: only what is missing is trained."""
    first = sweep.start()
    until(lambda: sweep.step(CANCELLED) >= 3 or first.poll() is not None, 300)
    assert first.poll() is None, finished(first).errors
    cancel()
    ended = finished(first)
    print(ended.errors, sweep.table())
    assert ended.code == 3, ended.errors
    states, reasons = sweep.states(), sweep.reasons()
    assert {arm for arm in ARMS if states[arm] == "done"} == set(FINISH)
    assert reasons[RAISES].startswith("ArithmeticError: of two")
    assert reasons[KILLED].startswith("killed by signal 9 (Killed)")
    assert reasons[SEGFAULTS].startswith("killed by signal 11 (Segmentation fault)")
    assert states[CANCELLED] == "stopped"
    assert "stopped by SIGTERM at step" in reasons[CANCELLED]
    errors = [line for line in ended.errors.splitlines() if line.startswith("error: ")]
    assert len(errors) == 4
    done, began = sweep.summaries(), sweep.record(CANCELLED).manifest()["start"]
    sweep.calm()
    again = sweep.run()
    print(again.errors, sweep.table())
    assert again.code == 0, again.errors
    assert {arm: sweep.summaries()[arm] for arm in FINISH} == done, "what is done is left alone"
    assert set(sweep.summaries()) == set(ARMS)
    assert sweep.record(CANCELLED).manifest()["start"] == began, "it was continued"
    assert all(sweep.record(arm).damage() == [] for arm in ARMS)


def test_local(place: Path, text_folder: Path) -> None:
    sweep = Sweep(place, text_folder, "--jobs", "6")
    check(sweep, lambda: sweep.terminate(CANCELLED))


@needs("submitit")
@needs_slurm
def test_slurm(place: Path, text_folder: Path, slurm: Slurm) -> None:
    words = ("--launcher", "submitit", "--engine", "timeout_min=10")
    sweep = Sweep(place, text_folder, *words, environ=slurm.environ)

    def cancel() -> None:
        print(slurm.ask("squeue", "-r"))
        slurm.ask("scancel", job_of(sweep, CANCELLED))

    check(sweep, cancel)
    print(slurm.ask("sacct", "-X", "-o", "JobID,JobName%40,State,ExitCode,Elapsed"))


def job_of(sweep: Sweep, arm: str) -> str:
    """The job of SLURM that trains an arm, of several the last."""
    [path] = sweep.runs.glob("studies/*/plan.json")
    [number] = [job.id for job in read_plan(path).jobs if job.arm == arm]
    entries = handed_in(path.parent / FOLDER)
    return [entry["job"] for entry in entries if number in entry["ids"]][-1]


@needs("ray")
def test_ray(place: Path, text_folder: Path) -> None:
    sweep = Sweep(place, text_folder, "--launcher", "ray", "--engine", "num_cpus=0.3")
    check(sweep, lambda: sweep.terminate(CANCELLED))


def test_commands(place: Path, text_folder: Path) -> None:
    """What GNU parallel does with the commands: it counts those that fail."""
    sweep = Sweep(place, text_folder, "--launcher", "commands")
    printed = sweep.run()
    assert printed.code == 0
    commands = printed.output.splitlines()
    assert len(commands) == len(ARMS)

    def started() -> list[int]:
        running = [
            subprocess.Popen(command, shell=True, cwd="/", env={"CALM": sweep.environ["CALM"]})
            for command in commands
        ]
        if not (sweep.folder / "calm").exists():
            until(lambda: sweep.step(CANCELLED) >= 3, 300)
            sweep.terminate(CANCELLED)
        return [process.wait(300) for process in running]

    assert sorted(started()) == [0, 0, 1, 1, 1, 1]
    assert {arm for arm, state in sweep.states().items() if state == "done"} == set(FINISH)
    done = sweep.summaries()
    print(sweep.table())
    sweep.calm()
    assert started() == [0] * 6, "also those that are done"
    assert {arm: sweep.summaries()[arm] for arm in FINISH} == done
    assert set(sweep.summaries()) == set(ARMS)
    assert sweep.run().output == "", "nothing is left to do"

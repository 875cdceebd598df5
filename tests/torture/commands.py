"""The commands that write: each in a folder of its own, and what its end must be.

A command is started in the folder of an attempt, where `runs` and `cache` are its own.
"""

import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.processes import Process, moebench
from tests.torture.runs import assert_same, finish, found, reference, room, words
from tests.torture.topic import DEADLINE

KIND = "global"
ARMS = "scope=micro,global"
WORDS = ("train.steps=3", "train.eval_every=2")


@dataclass(frozen=True)
class Command:
    """A command that writes.

    Attributes:
        words: of the command line.
        begins_with: whether the folder needs finished runs first.
        again: more words for the command that repeats it.
        check: raises AssertionError if the folder is not as the command must leave it.
    """

    words: Callable[[], list[str]]
    check: Callable[[Path], None]
    begins_with_runs: bool = False
    again: tuple[str, ...] = ()

    def start(self, place: Path, *more: str, env: Mapping[str, str] | None = None) -> Process:
        """Start the command in a folder."""
        own = {**os.environ, "MOEBENCH_CACHE": str(place / "cache"), "COLUMNS": "100"}
        return moebench(*self.words(), *more, env={**own, **(env or {})}, cwd=place)

    def prepare(self, place: Path) -> None:
        """Make what the folder needs before the command."""
        place.mkdir(parents=True, exist_ok=True)
        if self.begins_with_runs:
            shutil.copytree(_finished(), place / "runs")
            shutil.copytree(room() / "cache", place / "cache", dirs_exist_ok=True)

    def finish(self, place: Path) -> None:
        """Repeat the command, which must succeed, and check what it leaves."""
        begun = list(place.glob("runs/*/config.yaml"))
        process = self.start(place, *(self.again if begun else ()))
        out, errors = process.communicate(DEADLINE)
        assert process.returncode == 0, f"the repeated command fails: {errors or out}"
        self.check(place)


def _data() -> list[str]:
    return [word for word in words() if word.startswith("data")]


def _check_prepared(place: Path) -> None:
    process = moebench(
        "data", "check", *_data(), env={**os.environ, "MOEBENCH_CACHE": str(place / "cache")}
    )
    _, errors = process.communicate(DEADLINE)
    assert process.returncode == 0, errors


def _check_trained(place: Path) -> None:
    assert_same(KIND, place / "runs", *WORDS)


def _check_swept(place: Path) -> None:
    ended = found(place / "runs")
    wanted = {**reference("global", *WORDS), **reference("micro", *WORDS)}
    assert ended == wanted, f"{sorted(ended)} differ from runs that nothing stopped"


def _check_evaluated(place: Path) -> None:
    [tasks] = place.glob("runs/*/tasks/*.json")
    wanted = _evaluated()
    assert tasks.name == wanted.name
    _check_trained(place)


def _check_reported(place: Path) -> None:
    assert "</html>" in (place / "page.html").read_text()
    assert len(list((place / "plots").glob("*.svg"))) > 0
    _check_trained(place)


COMMANDS: dict[str, Command] = {
    "prepare": Command(lambda: ["data", "prepare", *_data()], _check_prepared),
    "train": Command(lambda: ["train", *words(*WORDS)], _check_trained, again=("--resume",)),
    "sweep": Command(lambda: ["sweep", *words(*WORDS, ARMS), "--jobs", "2"], _check_swept),
    "evaluate": Command(
        lambda: ["evaluate", _run_name(), "--questions", "4"], _check_evaluated, True
    ),
    "report": Command(
        lambda: ["report", "--html", "page.html", "--plots", "plots"], _check_reported, True
    ),
}


@cache
def _finished() -> Path:
    """A folder with a finished run."""
    folder = room() / "finished"
    finish(KIND, folder, *WORDS)
    return folder


@cache
def _run_name() -> str:
    [path] = _finished().glob("global-*")
    return f"runs/{path.name}"


@cache
def _evaluated() -> Path:
    place = room() / "evaluated"
    COMMANDS["evaluate"].prepare(place)
    process = COMMANDS["evaluate"].start(place)
    _, errors = process.communicate(DEADLINE)
    assert process.returncode == 0, errors
    [tasks] = place.glob("runs/*/tasks/*.json")
    return tasks


@cache
def seconds(name: str) -> float:
    """How long a command takes that nothing stops."""
    place, command = room() / f"timed-{name}", COMMANDS[name]
    command.prepare(place)
    began = time.monotonic()
    process = command.start(place)
    out, errors = process.communicate(DEADLINE)
    assert process.returncode == 0, f"{out}{errors}"
    taken = time.monotonic() - began
    command.check(place)
    return taken


def said(errors: str) -> str:
    """The last line of stderr; AssertionError for a stack trace or a bug."""
    assert "Traceback" not in errors, f"a stack trace: {errors[-1200:]}"
    assert "this is a bug" not in errors, errors
    return errors.strip().splitlines()[-1] if errors.strip() else ""

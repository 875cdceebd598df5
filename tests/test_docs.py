"""Every `moebench` command and every piece of Python in README and docs runs."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHRUNK = {
    "model": "smoke",
    "train.steps": "2",
    "seq_len": "16",
    "data.valid_sequences": "2",
    "run.device": "cpu",
}
TRAINS = ("train", "sweep")


def blocks(page: Path, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


COMMANDS = sorted(
    {
        line.split("#")[0].strip()
        for page in PAGES
        for block in blocks(page, "sh")
        for line in block.splitlines()
        if line.startswith("moebench ")
    }
)
PYTHON = [block for page in PAGES for block in blocks(page, "python")]


def shrink(words: list[str], folder: Path) -> list[str]:
    """The same command on a small model and small data, with few steps."""
    if words[0] not in TRAINS and words[0] != "data":
        return words
    small = SHRUNK if words[0] in TRAINS else {}
    if words[0] == "sweep":
        small = {**small, "seed": "0"}
    keys = {word.split("=")[0] for word in words[1:] if "=" in word}
    kept = [word for word in words if word.split("=")[0] not in small]
    kept = [f"data.path={folder}" if word.startswith("data.path=") else word for word in kept]
    kept = [word.replace("path=texts", f"path={folder}") for word in kept]
    if words[0] in TRAINS and keys & {"experiment"}:
        kept += ["micro_bsz=4", "global_bsz=8"]
    if "data.path" not in keys and not {"data=synthetic", "data=mixture"} & {*words}:
        kept += ["data=folder", f"data.path={folder}"]
    return [*kept, *(f"{key}={value}" for key, value in small.items())]


def test_there_are_commands_and_python_to_try() -> None:
    assert {command.split()[1] for command in COMMANDS} >= {"train", "sweep", "report", "dashboard"}
    assert PYTHON


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, text_folder: Path) -> Path:
    """A folder in which a study has been run, so that there is something to report."""
    place = tmp_path_factory.mktemp("docs")
    run(shrink(["sweep", "study=demo"], text_folder), place)
    return place


def run(words: list[str], place: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "moebench.cli", *words], cwd=place, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_command_runs(command: str, workplace: Path, text_folder: Path) -> None:
    words = shlex.split(command)[1:]
    if words == ["verify", "runs/*"]:  # as the shell would write it out
        words = ["verify", *map(str, (workplace / "runs").glob("*-s*-*"))]
    if words[0] == "dashboard":
        serve(words, workplace)
    else:
        run(shrink(words, text_folder), workplace)


def serve(words: list[str], place: Path) -> None:
    """Start a server, wait for its address, end it as Ctrl-C does."""
    process = subprocess.Popen(
        [sys.executable, "-m", "moebench.cli", *words],
        cwd=place,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    try:
        assert "http://" in process.stdout.readline()
    finally:
        process.send_signal(signal.SIGINT)
        process.stdout.close()
        assert process.wait(30) in (0, 130)


@pytest.mark.parametrize("code", PYTHON)
def test_python_runs(code: str) -> None:
    exec(compile(code, "docs", "exec"), {})


def test_readme_opens_with_the_two_commands() -> None:
    first = blocks(ROOT / "README.md", "sh")[0]
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["make demo", "make test"]
    assert shutil.which("make")

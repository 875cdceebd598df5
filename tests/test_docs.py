"""Every command, script, preset and piece of Python in README and docs works."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
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
    "run.threads": "1",
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
        if line.startswith(("moebench ", "torchrun "))
    }
)
PYTHON = [block for page in PAGES for block in blocks(page, "python")]
SCRIPTS = [block for page in PAGES for block in blocks(page, "bash")]
FILES = [  # each named right before its text
    found
    for page in PAGES
    for found in re.findall(
        r"`([\w/]+\.(?:yaml|py))`:\n\n^```\w+\n(.*?)^```",
        page.read_text(),
        re.DOTALL | re.MULTILINE,
    )
]
MOEBENCH = ["-m", "moebench.cli"]
TORCHRUN = ["-m", "torch.distributed.run"]


def shrink(words: list[str], folder: Path) -> list[str]:
    """The same command on a small model and small data, with few steps."""
    if words[0] not in TRAINS and words[0] != "data":
        return words
    if {"--status", "--print-config", "--config"} & {*words}:  # these need no data, or have it
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
    assert SCRIPTS
    assert len(FILES) == 3


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, text_folder: Path) -> Path:
    """A folder with the docs' files, and a study that has been run, to be reported."""
    place = tmp_path_factory.mktemp("docs")
    for name, text in FILES:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    run(shrink(["sweep", "study=demo"], text_folder), place)
    return place


def run(words: list[str], place: Path, start: list[str] = MOEBENCH) -> str:
    done = subprocess.run(
        [sys.executable, *start, *words], cwd=place, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_command_runs(command: str, workplace: Path, text_folder: Path) -> None:
    program, *words = shlex.split(command)
    done = sorted(str(path.parent) for path in workplace.glob("runs/*/summary.json"))
    if words == ["verify", "runs/*"]:  # as the shell would write it out
        words = ["verify", *done]
    words = [word.replace("runs/RUN", done[0]).replace("runs/OTHER", done[1]) for word in words]
    if program == "torchrun":
        own = words.index("train")
        run(shrink(words[own:], text_folder), workplace, [*TORCHRUN, *words[:own]])
    elif words[0] == "dashboard":
        serve(words, workplace)
    else:
        words = shrink(words, text_folder)
        if "--resume" in words:
            leave_unfinished([word for word in words if word != "--resume"], workplace)
        run(words, workplace)


def leave_unfinished(words: list[str], place: Path) -> None:
    """Train a run, and take from its record what says that it is done."""
    made = json.loads(run([*words, "--json"], place))
    (place / made["run"] / "summary.json").unlink()


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_script_goes_back_into_the_queue_when_it_is_stopped(
    script: str, tmp_path: Path, text_folder: Path
) -> None:
    small = {**SHRUNK, "train.steps": "300", "global_bsz": "8", "data.max_epochs": "1000"}
    words = ["data=folder", f"data.path={text_folder}", *(f"{k}={v}" for k, v in small.items())]
    commands = {
        "moebench": f'exec {shlex.join([sys.executable, *MOEBENCH])} "$@" {shlex.join(words)}',
        "scontrol": f'echo "$@" >> {tmp_path}/queue',
    }
    for name, line in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job.sh").write_text(script)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}

    def start(**more: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["bash", "job.sh"], cwd=tmp_path, env={**env, **more})

    job = start()
    while job.poll() is None:
        told = [json.loads(path.read_bytes()) for path in tmp_path.glob("runs/*/status.json")]
        if told and told[0]["step"] > 0:
            break
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(120) == 75
    assert (tmp_path / "queue").read_text() == "requeue 7\n"
    assert not [*tmp_path.glob("runs/*/summary.json")]
    assert start(SLURM_RESTART_COUNT="1").wait(240) == 0
    assert len([*tmp_path.glob("runs/*/summary.json")]) == 1
    assert (tmp_path / "queue").read_text() == "requeue 7\n"


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
def test_python_runs(code: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    exec(compile(code, "docs", "exec"), {})


def test_readme_opens_with_the_two_commands() -> None:
    first = blocks(ROOT / "README.md", "sh")[0]
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["make demo", "make test"]
    assert shutil.which("make")

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

from tests.doc_pages import (
    MOEBENCH,
    ROOT,
    SHRUNK,
    blocks,
    commands,
    named_files,
    run,
    run_python,
    shrink,
    workflow_scripts,
    write_files,
)

EXTENDING = ROOT / "docs" / "extending.md"  # test_extending.py runs it, on a copy of the tree
PAGES = [
    path.read_text()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if path != EXTENDING
]
WORKFLOW = [f"```sh\n{script}\n```" for script in workflow_scripts()]
COMMANDS = sorted({command for page in (*PAGES, *WORKFLOW) for command in commands(page)})
PYTHON = [block for page in PAGES for block in blocks(page, "python")]
SCRIPTS = [block for page in PAGES for block in blocks(page, "bash")]
TORCHRUN = ["-m", "torch.distributed.run"]


def test_there_are_commands_and_python_to_try() -> None:
    assert {command.split()[1] for command in COMMANDS} >= {"train", "sweep", "report", "dashboard"}
    assert PYTHON
    assert SCRIPTS
    assert len([name for page in PAGES for name, _ in named_files(page)]) == 3


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, text_folder: Path) -> Path:
    """A folder with the docs' files, and a study that has been run, to be reported."""
    place = tmp_path_factory.mktemp("docs")
    for page in PAGES:
        write_files(page, place)
    shutil.copytree(ROOT / "examples", place / "examples")
    run(shrink(["sweep", "study=demo"], text_folder), place)
    return place


@pytest.mark.parametrize("command", COMMANDS)
def test_command_runs(command: str, workplace: Path, text_folder: Path) -> None:
    program, *words = shlex.split(command)
    done = sorted(str(path.parent) for path in workplace.glob("runs/*/summary.json"))
    if words == ["verify", "runs/*"]:  # as the shell would write it out
        words = ["verify", *done]
    words = [word.replace("runs/RUN", done[0]).replace("runs/OTHER", done[1]) for word in words]
    if "router=replay" in words:
        for scope in ("scope=micro", "scope=global"):
            run(shrink(["train", scope, "run.record_selections=true"], text_folder), workplace)
    if "--init" in words:
        run(["export", done[0], "--to", "start"], workplace)
        words[words.index("--init") + 1] = "start"
    if program == "torchrun":
        own = words.index("train")
        run_python([*TORCHRUN, *words[:own], *shrink(words[own:], text_folder)], workplace)
    elif words[0] in ("dashboard", "watch"):
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
    first = blocks((ROOT / "README.md").read_text(), "sh")[0]
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["make demo", "make test"]
    assert shutil.which("make")


LINKING = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("benchmarks/*.md")]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKING, ids=lambda page: page.name)
def test_every_link_to_a_file_or_heading_resolves(page: Path) -> None:
    linked = r"""(?:\]\(|<img src=")(?!https?:)([^)"]+)[)"]"""
    for target in re.findall(linked, page.read_text()):
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target

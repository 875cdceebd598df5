"""What README and docs contain: commands, files and pieces of code; and how to run them small."""

import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import yaml

from tests.processes import moebench

ROOT = Path(__file__).parent.parent
SHRUNK = {
    "model": "smoke",
    "train.steps": "2",
    "seq_len": "16",
    "data.valid_sequences": "2",
    "run.device": "cpu",
    "run.threads": "1",
}
TRAINS = ("train", "sweep")
MOEBENCH = ["-m", "moebench.cli"]


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[str]:
    """The moebench and torchrun commands in `sh` blocks, without comments and redirections."""
    return [
        re.split("#|>", line)[0].strip()
        for block in blocks(text, "sh")
        for line in block.splitlines()
        if line.startswith(("moebench ", "torchrun "))
    ]


def workflow_scripts() -> list[str]:
    """What the steps of the example workflow for GitHub run in a shell."""
    text = (ROOT / "examples" / "github_workflow.yml").read_text()
    [job] = yaml.safe_load(text)["jobs"].values()
    return [step["run"] for step in job["steps"] if "run" in step]


def named_files(text: str) -> list[tuple[str, str]]:
    """Path and content of each file whose path precedes its code block."""
    pattern = r"`([\w/]+\.(?:yaml|py))`:\n\n^```\w+\n(.*?)^```"
    return re.findall(pattern, text, re.DOTALL | re.MULTILINE)


def write_files(text: str, place: Path) -> None:
    """Write the named files of a page below `place`."""
    for name, content in named_files(text):
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def shrink(arguments: list[str], folder: Path) -> list[str]:
    """The same command with a small model, few steps and the text in `folder`."""
    command = arguments[0]
    if command not in TRAINS and command != "data":
        return arguments
    if {"--status", "--print-config", "--config"} & {*arguments}:  # these need no data
        return arguments
    small = SHRUNK if command in TRAINS else {}
    if command == "sweep" and not {"--seeds", "--until-decided"} & {*arguments}:
        small = {**small, "seed": "0"}
    keys = {word.split("=")[0] for word in arguments[1:] if "=" in word}
    kept = [word for word in arguments if word.split("=")[0] not in small]
    kept = [f"data.path={folder}" if word.startswith("data.path=") else word for word in kept]
    kept = [word.replace("path=texts", f"path={folder}") for word in kept]
    if command in TRAINS and "experiment" in keys:
        kept += ["micro_bsz=4", "global_bsz=8"]
    if not {"data", "data.path"} & keys:
        kept += ["data=folder", f"data.path={folder}"]
    return [*kept, *(f"{key}={value}" for key, value in small.items())]


def run_python(arguments: list[str], place: Path, env: Mapping[str, str] | None = None) -> str:
    """Run Python with these arguments in a folder and return its output; it must succeed."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=place, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{shlex.join(arguments)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run(words: list[str], place: Path) -> str:
    """Run `moebench` with these words in a folder and return its output; it must succeed."""
    process = moebench(*words, cwd=place)
    out, errors = process.communicate(300)
    assert process.returncode == 0, f"{shlex.join(words)}\n{out}\n{errors}"
    return out

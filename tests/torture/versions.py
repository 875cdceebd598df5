"""The tests of whole runs under other versions of Python and of what moebench depends on.

Each environment is made by uv from `pyproject.toml`, with the lowest or the newest versions that it
allows, below `runs/torture/`.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.torture.topic import Counts, Topic, Untried

ROOT = Path(__file__).parents[2]
PLACE = ROOT / "runs" / "torture" / "environments"
PYTHONS = ("3.11", "3.12", "3.13")
TESTS = (
    *("tests/config", "tests/test_records.py", "tests/test_disk.py"),
    *("tests/experiment/test_damage.py", "tests/train/test_step.py", "tests/train/test_stack.py"),
)


def attempts() -> list[str]:
    """The lowest versions on the lowest Python, and the newest on each."""
    return [f"Python {PYTHONS[0]}, lowest", *(f"Python {each}, highest" for each in PYTHONS)]


def attempt(name: str, folder: Path) -> Counts:
    """Make an environment, unless it is there, and run tests of whole runs in it."""
    version, resolution = name.removeprefix("Python ").split(", ")
    python = _environment(version, "lowest-direct" if resolution == "lowest" else "highest")
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *TESTS]
    clean = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    done = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True)
    last = done.stdout.strip().splitlines()[-1:]
    assert done.returncode == 0, "\n".join(
        [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))] + last
    )
    torch = subprocess.run(
        [python, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True
    ).stdout.strip()
    [passed] = re.findall(r"(\d+) passed", last[0])
    return {f"tests passed on Python {version} with torch {torch}": int(passed)}


def _environment(version: str, resolution: str) -> str:
    """The Python of an environment. Raises Untried if it cannot be made here."""
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.defpath]))
    if uv is None:
        raise Untried("needs uv")
    place = PLACE / f"{version}-{resolution}"
    python = place / "bin" / "python"
    if python.exists() and (place / "ready").exists():
        return str(python)
    made = ["venv", "--quiet", "--allow-existing", "--no-python-downloads", "--python", version]
    filled = ["pip", "install", "--quiet", "--python", python, "--resolution", resolution]
    for words in ([*made, place], [*filled, "--editable", f"{ROOT}[dev,huggingface]"]):
        done = subprocess.run([uv, *map(str, words)], capture_output=True, text=True)
        if done.returncode:
            raise Untried(f"Python {version}: {done.stderr.strip().splitlines()[-1]}")
    (place / "ready").touch()
    return str(python)


TOPIC = Topic(
    "versions",
    "Whole runs pass their tests on each supported Python, with the lowest and the newest versions "
    "of what moebench depends on.",
    attempts,
    attempt,
    short=(),
)

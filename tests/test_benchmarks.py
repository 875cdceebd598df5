"""Every benchmark starts: it finds what it imports, and says what it does."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
BENCHMARKS = sorted(set(FOLDER.glob("*.py")) - {FOLDER / "timing.py"})


def test_there_are_benchmarks() -> None:
    assert {each.stem for each in BENCHMARKS} >= {"balance_loss", "race", "stack", "study"}


@pytest.mark.slow
@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_a_benchmark_starts(path: Path) -> None:
    command = [sys.executable, "-W", "error", str(path), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {path.name}")

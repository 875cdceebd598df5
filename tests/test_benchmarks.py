"""Every benchmark starts: it finds what it imports, and says what it does."""

import argparse
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.tables import at_least_one

FOLDER = Path(__file__).parent.parent / "benchmarks"
BENCHMARKS = [path for path in sorted(FOLDER.glob("*.py")) if "__main__" in path.read_text()]


@pytest.mark.slow
@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_a_benchmark_starts(path: Path) -> None:
    command = [sys.executable, "-W", "error", str(path), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {path.name}")


def test_a_benchmark_takes_a_round_at_least() -> None:
    assert at_least_one("2") == 2
    with pytest.raises(argparse.ArgumentTypeError, match=r"^0: must be at least 1"):
        at_least_one("0")


SHORT = {
    "race": ("--smoke", "--rounds", "1", "--memory"),
    "launches": ("--smoke",),
    "stack": ("--smoke", "--rounds", "1", "--most", "2"),
    "study": ("--smoke",),
    "threads": ("--smoke",),
    "products": ("--smoke", "--rounds", "1", "--compile"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_a_benchmark_of_others_goes_to_its_end(name: str) -> None:
    command = [sys.executable, str(FOLDER / f"{name}.py"), *SHORT[name]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) > 3


@pytest.mark.slow
@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
def test_a_race_captures_no_step_that_waits(
    capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(FOLDER)
    race, device = importlib.import_module("race"), torch.device("cuda", 0)
    monkeypatch.setattr(race, "trouble", lambda *_: "")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    found = race.entrants(race.SMOKE, device, compiled=True)
    graphs = [make for name, make in found.items() if "CUDA graph" in name]
    assert len(graphs) == 2
    for make in graphs:
        assert (make.func is race._skip) == (capability == (8, 0))
    if capability == (8, 0):
        with pytest.raises(RuntimeError, match="skipped: torch has no grouped kernel on sm_80"):
            graphs[0]()


def test_the_page_of_benchmarks_names_all_of_them() -> None:
    page = (FOLDER / "README.md").read_text()
    named = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    assert {path.name for path in BENCHMARKS} <= named

"""The wheel works from an empty folder, with its presets inside."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_wheel_ships_the_presets_and_runs_from_an_empty_folder(
    tmp_path: Path, text_folder: Path
) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", tmp_path, ROOT],
        check=True,
    )
    (wheel,) = tmp_path.glob("moebench-*.whl")
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
        packed.extractall(tmp_path / "site")
    for preset in (ROOT / "conf").rglob("*.yaml"):
        assert f"moebench/{preset.relative_to(ROOT).as_posix()}" in names
    assert not [name for name in names if name.startswith(("tests/", "runs/", "conf/"))]
    empty = tmp_path / "empty"
    empty.mkdir()

    def run(*words: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "moebench.cli", *words],
            cwd=empty,
            env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    where = subprocess.run(
        [sys.executable, "-c", "import moebench; print(moebench.__file__)"],
        cwd=empty,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert str(tmp_path / "site") in where, "the wheel's code runs, not the checkout's"
    assert "scope: global" in run("train", "--print-config")
    small = ("model=smoke", "train.steps=1", "seq_len=16", "global_bsz=8", "data.valid_sequences=2")
    run("train", *small, "data=folder", f"data.path={text_folder}")
    assert "global" in run("report")

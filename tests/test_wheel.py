"""The wheel holds all that moebench needs, and works from a folder that holds nothing."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import moebench

ROOT = Path(__file__).parent.parent
CLI = (sys.executable, "-m", "moebench.cli")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir"]
    subprocess.run([*pip, str(folder), str(ROOT)], check=True)
    [made] = folder.glob("moebench-*.whl")
    return made


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def run(unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs Python in an empty folder, where only the wheel's moebench is found."""
    monkeypatch.setenv("PYTHONPATH", str(unpacked))
    place = tmp_path / "empty"
    place.mkdir()

    def made(*words: str) -> str:
        done = subprocess.run(words, cwd=place, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return made


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_it_holds_every_file_and_preset_and_nothing_else(wheel: Path) -> None:
    found = {name for name in names(wheel) if ".dist-info/" not in name}
    package = (path for path in (ROOT / "moebench").rglob("*") if path.is_file())
    files = {path.relative_to(ROOT).as_posix() for path in package if path.suffix != ".pyc"}
    presets = {
        f"moebench/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")
    }
    assert "moebench/conf/config.yaml" in presets
    assert "moebench/conf/model/tiny.yaml" in presets
    assert "moebench/py.typed" in files
    assert found == files | presets


def test_it_names_its_licence_and_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [entry_points] = [name for name in names(wheel) if name.endswith("entry_points.txt")]
        [metadata] = [name for name in names(wheel) if name.endswith("METADATA")]
        assert "moebench = moebench.cli:main" in archive.read(entry_points).decode()
        assert "License-Expression: Apache-2.0" in archive.read(metadata).decode()
        assert f"\nVersion: {moebench.__version__}\n" in archive.read(metadata).decode()


def test_it_is_the_wheels_moebench_that_runs(run: Callable[..., str], unpacked: Path) -> None:
    code = "import moebench; print(moebench.__file__)"
    assert run(sys.executable, "-c", code).strip() == str(unpacked / "moebench" / "__init__.py")
    code = "from moebench.config.presets import shipped_conf; print(shipped_conf())"
    assert run(sys.executable, "-c", code).strip() == str(unpacked / "moebench" / "conf")


def test_it_composes_as_the_checkout_does(run: Callable[..., str]) -> None:
    here = subprocess.run(
        [*CLI, "train", "--print-config"], capture_output=True, text=True, cwd="/"
    )
    assert run(*CLI, "train", "--print-config") == here.stdout != ""


def test_it_sweeps(run: Callable[..., str], text_folder: Path, tmp_path: Path) -> None:
    words = ["model=smoke", "train.steps=2", "global_bsz=8", "seq_len=32", "data.valid_sequences=4"]
    words += ["data=folder", f"data.path={text_folder}", "run.device=cpu", "seed=0,1"]
    assert '"done"' in run(*CLI, "sweep", "--json", *words)
    assert os.listdir(tmp_path / "empty") == ["runs"]
    assert "global" in run(*CLI, "report")

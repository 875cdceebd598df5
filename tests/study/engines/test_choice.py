"""Launchers are presets; what is typed wrong is an error of one line, before anything starts."""

import sys
from pathlib import Path

import pytest

from moebench.cli.launching import parse_gpus, precision
from moebench.config.presets import LAUNCHER, Presets
from moebench.errors import ConfigError
from moebench.study.engines import Worker
from moebench.study.engines.choice import ENGINES, Choice
from moebench.study.engines.commands import Commands
from moebench.study.engines.local import Local

PRESETS = Presets()


def test_there_is_a_preset_of_each_engine() -> None:
    assert set(PRESETS.choices(LAUNCHER)) == set(ENGINES)
    assert isinstance(Choice().engine(PRESETS, Path()), Local)
    assert isinstance(Choice("commands").engine(PRESETS, Path()), Commands)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice("lokal"), "--launcher lokal: there is no such preset; did you mean local?"),
        (Choice(options=["a=1"]), "--engine a: --launcher local has no options; leave it out, or "),
        (Choice("commands", ["a=1"]), "--engine a: --launcher commands has no options; leave it o"),
        (Choice(options=["a"]), "--engine a: must be KEY=VALUE, as in timeout_min=60"),
        (Choice(options=["a=["]), "--engine a=[: the value is no YAML; put it in quotes"),
        (Choice(options=["engine=ray"]), "--engine engine=ray: the preset sets it; choose one by "),
        (Choice("commands", processes=2), "--jobs: is for --launcher local; with commands, what "),
        (Choice("commands", gpus=[0]), "--gpus: is for --launcher local; with commands, it decid"),
    ],
)
def test_a_wrong_choice_is_explained(choice: Choice, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        choice.engine(PRESETS, Path())
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("name", ["submitit", "ray"])
def test_a_library_that_is_missing_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"^--launcher {name}: {name} is not installed; add .*"):
        Choice(name).engine(PRESETS, Path())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "engine: pbs",
            "--launcher lab: engine=pbs: must be one of local, submitit, ",
        ),
        ("[1]", r"--launcher lab: .*lab.yaml: holds no table of options"),
        ("a: [", r"--launcher lab: .*lab.yaml: "),
    ],
)
def test_a_preset_of_ones_own_is_checked(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / LAUNCHER).mkdir()
    (tmp_path / LAUNCHER / "lab.yaml").write_text(content)
    with pytest.raises(ConfigError, match=f"^{message}"):
        Choice("lab").engine(Presets(tmp_path), tmp_path)


def test_a_preset_of_ones_own_shadows_none(tmp_path: Path) -> None:
    (tmp_path / LAUNCHER).mkdir()
    (tmp_path / LAUNCHER / "local.yaml").write_text("engine: local")
    with pytest.raises(ConfigError, match=r"launcher/local.yaml would shadow the shipped preset"):
        Presets(tmp_path)


def test_gpus_are_typed_as_places() -> None:
    assert parse_gpus("0,2") == (0, 2)
    for text in ("", "a", "0,", "-1", "0 2"):
        with pytest.raises(Exception, match="must be places of GPUs"):
            parse_gpus(text)


class OnGpus(Commands):
    def worker(self) -> Worker:
        return Worker("bf16", 2**34)


def test_the_workers_decide_what_auto_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moebench.device.suited_precision", lambda _: "of this machine")
    assert precision(Local())("auto") == "of this machine"
    assert [precision(OnGpus())(device) for device in ("auto", "cuda", "cpu")] == [
        *("bf16", "bf16"),
        "fp32",
    ]
    assert precision(Commands())("auto") == "fp32"

"""The kernels of a run are chosen once for a directory of runs, and recorded."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moebench.config.compose import Composer
from moebench.config.schema import ExperimentConfig
from moebench.errors import ConfigError
from moebench.train import kernels

CPU = torch.device("cpu")


def chosen(place: Path, *words: str, steps: int = 4) -> kernels.Kernels:
    config = Composer().compose(["model=smoke", f"train.steps={steps}", "run.threads=1", *words])
    return kernels.choose(config, 257, place, CPU)


def test_all_runs_of_a_directory_use_the_same_kernels(tmp_path: Path) -> None:
    first = chosen(tmp_path)
    assert (first.attention, first.experts, first.compile) == ("matmul", "grouped_mm", False)
    assert first.peak_flops > 0
    assert chosen(tmp_path, "seed=1") == first, "the peak is measured once"
    [path] = (tmp_path / ".kernels").glob("*.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "attention": "sdpa"}))
    assert chosen(tmp_path) == replace(first, attention="sdpa")
    config = ExperimentConfig()
    assert kernels.resumed({"kernels": vars(first)}, config, CPU) == first
    assert kernels.resumed({}, config, CPU) is None


def test_a_run_without_a_compiler_warns_and_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kernels, "_why_not", lambda device: "no C++ compiler")
    assert not chosen(tmp_path, "run.compile=true").compile
    [message] = caplog.messages
    assert message.startswith("run.compile=true: cannot be compiled here (no C++ compiler); ")
    caplog.clear()
    assert not chosen(tmp_path, "run.compile=false").compile
    assert caplog.messages == []


def test_auto_compiles_long_runs_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_why_not", lambda device: "")
    assert not chosen(tmp_path).compile
    assert chosen(tmp_path, steps=10_000_000).compile
    assert not chosen(tmp_path, "run.compile=false", steps=10_000_000).compile
    assert kernels.wrapper(chosen(tmp_path, "run.compile=true")) is torch.compile


def test_what_is_compiled_is_kept_for_later_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = kernels.Kernels("matmul", "grouped_mm", compile=True, peak_flops=1.0)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    kernels.wrapper(compiled)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "mine"
    del os.environ["TORCHINDUCTOR_CACHE_DIR"]
    assert kernels.wrapper(replace(compiled, compile=False)) is None
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    kernels.wrapper(compiled)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == f"{os.environ['MOEBENCH_CACHE']}/compiled"


@pytest.mark.parametrize("words", ["run.stack=0", "run.stack=many", "run.compile=maybe"])
def test_an_invalid_value_is_refused(words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")):
        Composer().compose([words])

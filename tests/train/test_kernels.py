"""What a device computes with is found out once, kept and recorded."""

import json
from pathlib import Path

import pytest
import torch

from moebench.config.compose import Composer
from moebench.train import kernels as module
from moebench.train.kernels import kernels
from moebench.train.loop import plain_model

CPU = torch.device("cpu")
COMPOSER = Composer()


def found(folder: Path, *overrides: str) -> module.Kernels:
    config = COMPOSER.compose(["model=smoke", *overrides])
    with torch.device("meta"):
        return kernels(config, folder, CPU, plain_model(config, 256))


def test_it_is_found_out_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = found(tmp_path)
    assert first.peak_flops > 1e8
    assert (first.attention, first.grouped, first.compile) == ("matmul", "torch", False)
    monkeypatch.setattr(module, "peak_flops", lambda *_: pytest.fail("measured again"))
    assert found(tmp_path, "run.compile=false") == first
    [key] = json.loads((tmp_path / "devices.json").read_text())
    assert f"torch {torch.__version__}, fp32" in key


def test_compiling_is_for_runs_that_earn_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "peak_flops", lambda *_: 1e11)
    monkeypatch.setattr(module, "has_compiler", lambda _: True)
    assert not found(tmp_path).compile
    assert found(tmp_path, "train.steps=100000000").compile
    assert not found(tmp_path, "train.steps=100000000", "run.compile=false").compile
    assert found(tmp_path, "run.compile=true").compile


def test_without_a_compiler_nothing_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "has_compiler", lambda _: False)
    assert not found(tmp_path, "run.compile=true").compile

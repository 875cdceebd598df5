"""The speed of bf16 on a CPU: measured once on a machine, and kept."""

from pathlib import Path

import pytest
import torch

from moebench.train import precision_gain


def test_it_is_measured_once_on_a_machine_and_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MOEBENCH_CACHE", str(tmp_path / "cache"))
    gains = iter([1.234, 0.5, 0.75])
    monkeypatch.setattr(precision_gain, "measured_gain", lambda: next(gains))
    assert precision_gain.bf16_gain() == precision_gain.bf16_gain() == 1.23
    monkeypatch.setattr(precision_gain, "processor", lambda: "another one")
    assert precision_gain.bf16_gain() == 0.5
    (tmp_path / "cache" / "bf16-gain.json").write_text('{"another one": []}')
    assert precision_gain.bf16_gain() == 0.75


def test_a_cache_that_cannot_be_written_is_no_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MOEBENCH_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(precision_gain, "measured_gain", lambda: 1.5)
    assert precision_gain.bf16_gain() == 1.5


def test_the_measurement_is_a_ratio_and_leaves_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    seconds = iter([0.0, 9.0, 9.0, 10.0, 20.0, 24.0, 30.0, 32.0])  # warming up, then 4 and 2
    monkeypatch.setattr(precision_gain, "ROUNDS", 2)
    monkeypatch.setattr(precision_gain, "SEQUENCES", 1)
    monkeypatch.setattr(precision_gain.time, "process_time", lambda: next(seconds))
    assert precision_gain.measured_gain() == 2.0
    assert torch.get_num_threads() == threads

"""Whole runs on the pretended GPU: their records are those of the CPU, but for rounding."""

import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from moebench import experiment
from moebench.config.schema import ExperimentConfig
from moebench.data.corpus import Corpus
from moebench.errors import Stopped
from moebench.experiment import run_experiment, run_stack
from moebench.protection import CHECKPOINTS, steps_kept
from moebench.records import Record
from moebench.train import kernels
from moebench.train.stack import Stack
from tests.pretended_gpu.conftest import MadeRun
from tests.pretended_gpu.gpu import Gpu

pytestmark = pytest.mark.gpu
WORDS = "train.precision=fp32", "train.steps=2", "train.eval_every=1"


@pytest.fixture(autouse=True)
def short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The product by which a GPU's peak is measured is long for a CPU."""
    monkeypatch.setitem(kernels.SIDE, "cuda", 256)


def of(made: MadeRun, device: str, *words: str) -> tuple[ExperimentConfig, Corpus]:
    run = made(device, *WORDS, *words)
    return run.config, run.corpus


def test_a_run_leaves_the_record_of_the_cpu(made: MadeRun, gpu: Gpu, tmp_path: Path) -> None:
    records = [
        run_experiment(*of(made, device), tmp_path / device, command="")
        for device in ("cpu", "cuda")
    ]
    on_cpu, on_gpu = records
    assert on_gpu.name == on_cpu.name, "a device is no part of the identity"
    assert on_gpu.damage() == []
    assert on_gpu.manifest()["device"] == "cuda"
    one, other = (record.summary() for record in records)
    assert one.keys() == other.keys()
    for name in ("valid/nats", "train/loss", "train/balance_loss", "router/topk_mass"):
        assert other[name] == pytest.approx(one[name], rel=1e-4), name
    assert 0 < other["memory/peak_bytes"] < 2**26, "of the run, not of the products timed before"


def test_runs_of_a_stack_leave_their_records(made: MadeRun, gpu: Gpu, tmp_path: Path) -> None:
    pairs = [of(made, "cuda", f"scope={scope}") for scope in ("micro", "global")]
    configs, corpora = zip(*pairs, strict=True)
    assert run_stack(configs, corpora, tmp_path) == [None, None]
    records = [Record(path) for path in tmp_path.glob("*-s0-*")]
    assert [record.manifest()["stacked"] for record in records] == [2, 2]
    assert [record.damage() for record in records] == [[], []]


def test_a_stop_keeps_weights_and_record_of_one_step(
    made: MadeRun, gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal arrives after the update of a stack and before its runs know of it."""
    runs = [made("cuda", "train.precision=fp32", f"scope={scope}") for scope in ("micro", "global")]
    configs, corpora = [run.config for run in runs], [run.corpus for run in runs]
    assert run_stack(configs, corpora, tmp_path / "whole") == [None, None]
    signals: list[int] = []
    update = Stack.update

    def stopped_after(*given: Any) -> Any:
        outcomes = update(*given)
        if given[1][0].step.number == 2:
            signals.append(signal.SIGTERM)
        return outcomes

    monkeypatch.setattr(experiment, "collected", lambda: nullcontext(signals))
    monkeypatch.setattr(Stack, "update", stopped_after)
    errors = run_stack(configs, corpora, tmp_path / "cut")
    assert [type(error) for error in errors] == [Stopped, Stopped]
    for record in map(Record, (tmp_path / "cut").glob("*-s0-*")):
        assert steps_kept(record.path / CHECKPOINTS) == [2]
        assert record.rows()[-1]["step"] == 2
    signals.clear()
    monkeypatch.setattr(Stack, "update", update)
    assert run_stack(configs, corpora, tmp_path / "cut") == [None, None]
    for whole in map(Record, (tmp_path / "whole").glob("*-s0-*")):
        cut = Record(tmp_path / "cut" / whole.name)
        assert cut.damage() == []
        losses = [[row["train/loss"] for row in each.rows()[1:]] for each in (whole, cut)]
        assert losses[0] == losses[1]
        assert len(losses[0]) == 4

"""One config, one record: paired, resumable to the bit, sealed, and learning."""

import errno
import math
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from moebench.config.identity import run_name
from moebench.data.corpus import Corpus
from moebench.errors import DataError, RecordError, TrainingError
from moebench.experiment import run_experiment
from moebench.experiment.session import status_every
from moebench.records import Record, find_records
from moebench.train.build import make_model
from moebench.train.loop import Event
from moebench.train.ranks import Ranks
from tests.experiment.conftest import Compose
from tests.results import measured, results, stopped


def weights(record: Record, step: int = 12) -> dict[str, torch.Tensor]:
    return load_file(record.path / "checkpoints" / f"step-{step}" / "model.safetensors")


def same_weights(one: Record, other: Record) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_record_is_whole(compose: Compose, corpus: Corpus, tmp_path: Path) -> None:
    record = run_experiment(compose("loss.z=0.001"), corpus, tmp_path)
    assert record.damage() == []
    assert record.status()["state"] == "done"
    summary, rows = record.summary(), record.rows()
    assert [row["step"] for row in rows] == list(range(13))
    assert [row["step"] for row in rows if "valid/nats" in row] == [0, 5, 10, 12]
    assert record.routing_steps() == [0, 5, 10, 12]
    assert summary["tokens"] == 12 * 8 * 32
    assert summary["valid/ppl"] == pytest.approx(math.exp(summary["valid/nats"]))
    domains = record.manifest()["domains"]
    assert summary["valid/nats"] == pytest.approx(
        sum(summary[f"valid/nats/{name}"] for name in domains) / len(domains)
    )
    settled = [row["train/loss"] for row in rows if row["step"] > 12 * 0.9]
    assert summary["train/loss"] == pytest.approx(sum(settled) / len(settled))
    counts = record.routing(12)["counts"]
    assert counts.shape == (2, len(domains), 8)
    assert (counts.sum(-1) == 4 * 32 * 2).all()
    pairs = record.routing(12)["coactivation"]
    assert (pairs.diagonal(axis1=1, axis2=2) == counts.sum(1)).all()
    names = set(rows[-1])
    assert {
        "train/loss",
        "train/balance_loss",
        "train/balance_loss_micro",
        "train/balance_loss_global",
        "train/z_loss",
        "train/grad_norm",
        "train/lr",
        "valid/bits_per_byte",
        "tune/nats",
        "load/max_vio_micro",
        "load/max_vio_batch",
        "load/max_vio_global",
        "load/cv",
        "load/entropy",
        "load/dead_experts",
        "load/utilization/0",
        "specialization/domain",
        "router/topk_mass",
        "speed/tokens_per_second",
        "speed/step_seconds",
        "memory/peak_bytes",
    } <= names
    assert list((record.path / "tensorboard").glob("*tfevents*"))


def test_a_finished_run_is_left_as_it_is(compose: Compose, corpus: Corpus, tmp_path: Path) -> None:
    config = compose("train.steps=2")
    before = run_experiment(config, corpus, tmp_path).summary()
    assert run_experiment(config, corpus, tmp_path).summary() == before
    again = run_experiment(config, corpus, tmp_path, force=True)
    assert again.damage() == []
    # as if --force were killed after it renamed the old record
    again.path.rename(tmp_path / f".{again.name}.1.old")
    assert find_records(tmp_path) == []


def test_arms_are_paired(compose: Compose, corpus: Corpus, tmp_path: Path) -> None:
    """Runs of one seed have the same initial model and batches, whatever the scope."""
    first = {
        scope: run_experiment(compose(f"scope={scope}", "train.steps=1"), corpus, tmp_path).rows()
        for scope in ("none", "micro", "shuffled", "global", "sequence", "domain")
    }
    start, step = first["none"]
    for rows in first.values():
        assert rows[0]["valid/nats"] == start["valid/nats"]
        for key in ("train/loss", "train/balance_loss_micro", "load/max_vio_batch"):
            assert rows[1][key] == step[key]
    other = run_experiment(compose("scope=none", "seed=1", "train.steps=1"), corpus, tmp_path)
    assert other.rows()[1]["train/loss"] != step["train/loss"]
    shared = make_model(compose("scope=none", "loss.z=0.1", "router.renormalize=false"), 256)
    for name, each in make_model(compose(), 256).named_parameters():
        assert torch.equal(each, shared.get_parameter(name))


def test_equal_treatments_give_equal_bits(compose: Compose, corpus: Corpus, tmp_path: Path) -> None:
    one = run_experiment(compose("scope=micro"), corpus, tmp_path / "a")
    other = run_experiment(compose("scope=global", "balance_bsz=4"), corpus, tmp_path / "b")
    third = run_experiment(compose("scope=shuffled", "balance_bsz=4"), corpus, tmp_path / "c")
    assert one.name == other.name == third.name
    assert measured(one) == measured(other) == measured(third)
    assert same_weights(one, other)


@pytest.mark.parametrize("scope", ["global", "shuffled"])
def test_execution_changes_nothing_but_rounding(
    compose: Compose, corpus: Corpus, tmp_path: Path, scope: str
) -> None:
    plain = run_experiment(compose(f"scope={scope}"), corpus, tmp_path / "a")
    split = run_experiment(
        compose(f"scope={scope}", "run.device_bsz=2", "run.log_every=7", "run.checkpoint_every=5"),
        corpus,
        tmp_path / "b",
    )
    assert plain.name == split.name
    one, other = plain.summary(), split.summary()
    for key in ("valid/nats", "train/loss", "train/balance_loss", "load/max_vio_micro"):
        assert other[key] == pytest.approx(one[key], rel=1e-4), key


@pytest.mark.parametrize(
    ("stop_at", "more"),
    [(2, []), (6, ["optim.ema=0.4", "optim.router_lr=3"]), (6, ["train.precision=bf16"])],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    compose: Compose, corpus: Corpus, tmp_path: Path, more: list[str], stop_at: int
) -> None:
    config = compose("scope=shuffled", "train.precision=fp32", *more)
    whole = run_experiment(config, corpus, tmp_path / "whole")
    error = stopped(config, corpus, tmp_path / "cut", stop_at)
    assert f"stopped by SIGTERM at step {stop_at}" in str(error)
    assert error.exit_code == 75
    record = Record(tmp_path / "cut" / whole.name)
    assert record.status()["state"] == "stopped"
    with pytest.raises(RecordError, match="--resume continues it"):
        run_experiment(config, corpus, tmp_path / "cut")
    run_experiment(config, corpus, tmp_path / "cut", resume=True)
    assert results(record) == results(whole)


def test_rows_after_the_last_checkpoint_are_recorded_again(
    compose: Compose, corpus: Corpus, tmp_path: Path
) -> None:
    """After a kill there are rows of steps 5 to 7, a torn line, and the checkpoint of step 4."""

    class Killed(BaseException):
        pass

    def kill(event: Event) -> None:
        if event.step == 7:
            raise Killed

    whole = run_experiment(compose(), corpus, tmp_path / "whole")
    with pytest.raises(Killed):
        run_experiment(compose(), corpus, tmp_path / "cut", on_event=kill)
    record = Record(tmp_path / "cut" / whole.name)
    with open(record.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "train/lo')
    assert record.rows()[-1]["step"] == 7
    run_experiment(compose(), corpus, tmp_path / "cut", resume=True)
    assert results(record) == results(whole)


@pytest.mark.parametrize(
    ("where", "error", "said"),
    [
        (
            "moebench.train.checkpoint.save",
            OSError(errno.ENOSPC, "No space left on device"),
            "(No space left on device); free some space, and --resume continues",
        ),
        (
            "moebench.records.Record.append",
            OSError(errno.EFBIG, "File too large"),
            "(File too large); free some space, and --resume continues",
        ),
        (
            "moebench.disk.os.fsync",
            OSError(errno.EIO, "Input/output error"),
            "(Input/output error); make it writable, and --resume continues",
        ),
        (
            "moebench.tensorboard.View.add",
            PermissionError(errno.EACCES, "Permission denied"),
            "(Permission denied); make it writable, and --resume continues",
        ),
    ],
    ids=lambda value: value.rpartition(".")[2] if isinstance(value, str) else "",
)
def test_a_write_error_loses_only_the_steps_after_the_last_checkpoint(
    compose: Compose,
    corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    error: Exception,
    said: str,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    whole = run_experiment(compose(), corpus, tmp_path / "whole")
    record = Record(tmp_path / "cut" / whole.name)
    with monkeypatch.context() as patch, pytest.raises(TrainingError) as caught:
        run_experiment(
            compose(),
            corpus,
            tmp_path / "cut",
            on_event=lambda event: patch.setattr(where, refuse) if event.step == 6 else None,
        )
    text = re.sub(r": [\d,]+ bytes are free", "", str(caught.value))  # of this machine's disk
    assert text == f"{record.path}: cannot be written {said} from the last checkpoint"
    state = record.status()["state"]
    assert state == ("running" if where.endswith("fsync") else "failed"), "as far as it can say"
    run_experiment(compose(), corpus, tmp_path / "cut", resume=True)
    assert results(record) == results(whole)
    assert [session["step"] for session in record.manifest()["resumed"]] == [4]


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("optim.lr=1e38",), r"step 2: the weight embedding is not finite"),
        (("optim.lr=1e30",), r"step 2: the gradient of embedding is not finite"),
        (("loss.balance=1e28",), r"step 1: the norm of the gradient is too large"),
        (("loss.balance=1e39",), r"step 1: the balance loss over global is inf"),
        (("loss.z=1e39",), r"step 1: the z-loss is inf"),
    ],
)
def test_a_step_that_is_not_finite_fails_the_run_before_the_update(
    compose: Compose, corpus: Corpus, tmp_path: Path, overrides: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(TrainingError, match=reason):
        run_experiment(compose(*overrides), corpus, tmp_path)
    (path,) = tmp_path.glob("global-*")
    status = Record(path).status()
    assert status["state"] == "failed"
    assert re.search(reason, status["reason"])
    assert not Record(path).is_done()


def test_a_model_that_diverges_has_an_infinite_perplexity(
    compose: Compose, corpus: Corpus, tmp_path: Path
) -> None:
    config = compose("train.steps=1", "optim.lr=1000", "optim.warmup=0")
    summary = run_experiment(config, corpus, tmp_path).summary()
    assert summary["valid/nats"] > 100


def test_a_model_too_large_for_memory_fails_with_a_remedy(
    compose: Compose, corpus: Corpus, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"run\.device_bsz=8: out of memory on cpu .*smaller"):
        run_experiment(compose("model.d_model=4000000"), corpus, tmp_path)
    (path,) = tmp_path.glob("global-*")
    assert Record(path).status()["state"] == "failed"


def test_a_resumed_run_keeps_its_split_and_records_the_session(
    compose: Compose, corpus: Corpus, tmp_path: Path
) -> None:
    whole = run_experiment(compose("run.device_bsz=2"), corpus, tmp_path / "whole")
    stopped(compose("run.device_bsz=2"), corpus, tmp_path / "cut", step=6)
    record = Record(tmp_path / "cut" / whole.name)
    first = record.manifest()
    run_experiment(compose(), corpus, tmp_path / "cut", resume=True)
    assert record.config()["run.device_bsz"] == 2
    assert measured(record) == measured(whole)
    manifest = record.manifest()
    assert {key: manifest[key] for key in first} == first
    assert [session["step"] for session in manifest["resumed"]] == [6]


def test_too_little_data_is_refused_before_anything_is_written(
    compose: Compose, corpus: Corpus, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"data\.max_epochs"):
        run_experiment(compose("train.steps=100000"), corpus, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_of_a_run_that_is_done_end_together(
    compose: Compose, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    """Another process may finish the run before the first rank takes its lock."""
    record = Record(tmp_path / run_name(compose(), corpus.content_hash))
    record.path.mkdir()
    record.begin("", {})
    record.seal({})
    said: list[Any] = []

    class Told(Ranks):
        def broadcast(self, value: Any) -> Any:
            said.append(value)
            return value if self.first else "done"

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("moebench.experiment.joined", lambda _: nullcontext(Told(rank, 2)))
    assert run_experiment(compose(), corpus, tmp_path).path == record.path
    assert said == [["done"], [None]][rank]


def test_the_status_of_a_long_run_or_a_stack_is_written_less_often() -> None:
    assert [status_every(seconds) for seconds in (0, 50, 300, 1e5)] == [0.5, 0.5, 3, 10]
    assert [status_every(0, stacked) for stacked in (1, 4, 64)] == [0.5, 2, 10]

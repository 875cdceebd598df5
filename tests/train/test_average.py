"""The average of late weights: its formula, and that evaluations see it and training does not."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from moebench.config.compose import Composer
from moebench.config.schema import ExperimentConfig
from moebench.data.corpus import Corpus, prepare
from moebench.errors import RecordError
from moebench.evaluate import open_checkpoint
from moebench.experiment import run_experiment
from moebench.records import Record
from moebench.train.average import averaged, begin, move
from moebench.train.build import make_objective, make_state
from moebench.train.checkpoint import restore, save_checkpoint
from moebench.train.measure import evaluate

CPU = torch.device("cpu")
STEPS = 8


def small(text_folder: Path, *more: str) -> tuple[ExperimentConfig, Corpus]:
    words = [
        *("model=smoke", f"train.steps={STEPS}", "global_bsz=8", "seq_len=32", "optim.lr=0.03"),
        *("data=folder", f"data.path={text_folder}", "data.valid_sequences=4"),
        *("run.device=cpu", "run.threads=1", "run.log_every=1", "train.eval_every=4"),
    ]
    config = Composer().compose([*words, *more])
    return config, prepare(config.data)


@pytest.fixture(scope="module")
def pair(
    text_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Record, Record, Corpus]:
    """A run, and the same run with an average."""
    folder = tmp_path_factory.mktemp("runs")
    plain, corpus = small(text_folder)
    average = replace(plain, optim=replace(plain.optim, ema=0.5))
    return (
        run_experiment(plain, corpus, folder),
        run_experiment(average, corpus, folder),
        corpus,
    )


@pytest.mark.parametrize("share", [0.01, 0.25, 1.0])
def test_average_is_the_mean_at_first_and_exponential_then(share: float) -> None:
    model = nn.Linear(2, 1, bias=False)
    config = Composer().compose([f"optim.ema={share}", "train.steps=20"])
    average = begin(model, config)
    assert average is not None
    expected, seen = 0.0, []
    for step in range(1, 21):
        seen.append(float(step**2))
        model.weight.data.fill_(seen[-1])
        move(average, model, config, step)
        horizon = max(1.0, 20 * share)
        if step <= horizon:
            expected = sum(seen) / len(seen)
        else:
            expected = expected * (1 - 1 / horizon) + seen[-1] / horizon
        assert average["weight"].flatten().tolist() == pytest.approx([expected] * 2, rel=1e-5)


def test_without_the_key_there_is_no_average() -> None:
    assert begin(nn.Linear(2, 1), Composer().compose([])) is None


def test_a_models_own_weights_come_back() -> None:
    model = nn.Linear(2, 1, bias=False)
    own = model.weight.data_ptr()
    other = {"weight": torch.full((1, 2), 7.0)}
    with averaged(model, other):
        assert model.weight.tolist() == [[7.0, 7.0]]
    assert model.weight.data_ptr() == own


def test_training_does_not_see_the_average(pair: tuple[Record, Record, Corpus]) -> None:
    plain, average, _ = pair
    rows, others = plain.rows(), average.rows()
    assert [row.get("train/loss") for row in rows] == [row.get("train/loss") for row in others]
    assert rows[0]["valid/nats"] == others[0]["valid/nats"], "before the first step"
    assert plain.summary()["valid/nats"] != average.summary()["valid/nats"]


def test_checkpoints_are_evaluated_by_the_average(pair: tuple[Record, Record, Corpus]) -> None:
    """What the run measured at its end is what its checkpoint gives, and not its last weights."""
    for record in pair[:2]:
        checkpoint = open_checkpoint(record)
        bsz = checkpoint.config.global_bsz
        found = evaluate(
            checkpoint.config, pair[2], checkpoint.model, CPU, device_bsz=bsz, step=STEPS
        )
        wanted = record.summary()["valid/nats"]
        assert found.row["valid/nats"] == pytest.approx(wanted, rel=1e-6)


def test_a_checkpoint_without_its_average_is_refused(text_folder: Path, tmp_path: Path) -> None:
    config, corpus = small(text_folder, "optim.ema=0.5")
    state = make_state(config, corpus.vocab_size, CPU)
    state.step, average = 1, state.average
    for parameter in state.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    objective = make_objective(config, corpus.domains)
    for step, wrong, message in (
        (1, None, r"names no average\.safetensors"),
        (2, {"embedding": torch.ones(2)}, "averaged weights differ"),
    ):
        state.step, state.average = step, wrong
        path = save_checkpoint(tmp_path, state)
        state.average = average
        with pytest.raises(RecordError, match=message):
            restore(state, path, objective, CPU)

"""Arms in a stack against the same arms alone: not one bit differs."""

import os
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch._C._functorch import (
    _set_vmap_fallback_enabled,  # pyright: ignore[reportAttributeAccessIssue]
)

from moebench.config.compose import Composer, to_dict
from moebench.config.schema import ExperimentConfig
from moebench.config.stacking import shape_of
from moebench.data.batches import batch_hash, make_batches
from moebench.data.corpus import Corpus, prepare
from moebench.errors import Stopped, TrainingError
from moebench.experiment import run_experiment, run_stack
from moebench.records import Record
from moebench.train.loop import Arm, Event, make_state
from moebench.train.stack import train_together
from tests.results import results

CPU = torch.device("cpu")
COMPOSER = Composer()
SIZES = (
    *("model=smoke", "global_bsz=8", "seq_len=16", "data.valid_sequences=2", "run.device=cpu"),
    *("run.threads=1", "run.log_every=1", "data=folder"),
)
ARMS = (
    ["scope=micro"],
    ["scope=none", "seed=1"],
    ["scope=shuffled", "seed=2", "loss.z=0.01"],
    ["scope=global", "loss.balance=0.5", "optim.lr=0.01"],
    ["scope=global", "balance.estimator=ema", "balance.decay=0.5", "optim.clip=0.1"],
    ["scope=domain", "data.homogeneity=0", "router.perturb=1e-3"],
)


@pytest.fixture(autouse=True)
def _one_thread_and_no_fallback() -> Iterator[None]:
    """vmap may fall back to a loop nowhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    _set_vmap_fallback_enabled(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    _set_vmap_fallback_enabled(True)
    torch.set_num_threads(before)


def compose(folder: Path, *overrides: str) -> ExperimentConfig:
    steps = [] if any(each.startswith("train.steps=") for each in overrides) else ["train.steps=20"]
    return COMPOSER.compose([*SIZES, *steps, f"data.path={folder}", *overrides])


@pytest.fixture(scope="module")
def corpus(text_folder: Path) -> Corpus:
    return prepare(compose(text_folder).data)


def made(config: ExperimentConfig, corpus: Corpus) -> Arm:
    return Arm(config, corpus, make_state(config, corpus.vocab_size, CPU), CPU)


def same(one: Arm, other: Arm) -> bool:
    theirs = other.state.model.state_dict()
    return all(
        torch.equal(each, theirs[name]) for name, each in one.state.model.state_dict().items()
    )


def told(event: Event) -> dict[str, float]:
    """What an event says, but for the time that it took."""
    row = event.row or {}
    return {key: row[key] for key in row if not key.startswith(("speed/", "memory/"))}


@pytest.mark.parametrize("more", [[], ["run.device_bsz=4"], ["train.precision=bf16"]], ids=str)
def test_a_stacked_arm_is_the_arm_alone(text_folder: Path, corpus: Corpus, more: list[str]):
    configs = [compose(text_folder, *arm, *more) for arm in ARMS]
    assert len({shape_of(to_dict(each)) for each in configs}) == 1
    stacked = [made(each, corpus) for each in configs]
    said: list[list[dict[str, float]]] = [[] for _ in stacked]
    for step in train_together(stacked):
        for number, event, error in step:
            assert event is not None, error
            said[number].append(told(event))
    for config, arm, rows in zip(configs, stacked, said, strict=True):
        alone = made(config, corpus)
        assert [told(event) for event in alone.train()] == rows
        assert same(arm, alone)
        assert len(rows) == 21


def test_an_arm_that_dies_is_frozen_and_harms_nobody(text_folder: Path, corpus: Corpus):
    configs = [compose(text_folder, *arm) for arm in ARMS[:3]]
    stacked = [made(each, corpus) for each in configs]
    ended: dict[int, TrainingError] = {}
    for step in train_together(stacked):
        for number, event, error in step:
            if error is not None:
                ended[number] = error
            elif number == 1 and event is not None and event.step == 5:
                with torch.no_grad():
                    stacked[1].state.model.head[3] = torch.nan
    assert list(ended) == [1]
    assert "step 6: the cross-entropy is nan" in str(ended[1])
    assert stacked[1].state.step == 5
    for number in (0, 2):
        alone = made(configs[number], corpus)
        list(alone.train())
        assert same(stacked[number], alone)


def test_an_arm_has_the_batches_and_the_initial_weights_it_has_alone(
    text_folder: Path, corpus: Corpus
):
    configs = [compose(text_folder, *arm, "train.steps=2") for arm in ARMS]
    arms = [made(each, corpus) for each in configs]
    weights = [made(each, corpus) for each in configs]
    steps = train_together(arms)
    next(steps)
    assert all(map(same, arms, weights))
    for arm, config in zip(arms, configs, strict=True):
        batch = make_batches(corpus, config).batch(1)
        step = arm.next_step()
        assert batch_hash(batch) == batch_hash(batch._replace(tokens=step.tokens.numpy()))


def test_records_of_a_stack_know_nothing_of_it(text_folder: Path, corpus: Corpus, tmp_path: Path):
    words = ("train.steps=6", "run.checkpoint_every=2")
    configs = [compose(text_folder, *arm, *words) for arm in ARMS[:3]]
    runs = [(each, corpus) for each in configs]

    def stop(number: int, event: Event) -> None:
        if number == 1 and event.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        run_stack(runs, tmp_path / "stack", on_event=stop)
    # one of them goes on alone, the others in a stack once more
    run_experiment(configs[0], corpus, tmp_path / "stack", resume=True)
    assert run_stack(runs, tmp_path / "stack") == [None, None, None]
    for config in configs:
        alone = run_experiment(config, corpus, tmp_path / "alone")
        stacked = Record(tmp_path / "stack" / alone.name)
        assert stacked.damage() == []
        assert results(stacked) == results(alone)

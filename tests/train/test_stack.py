"""Stacked arms are what they are alone, bit for bit, whatever befalls another arm of the stack."""

import gc
import hashlib
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from moebench.config.compose import Composer
from moebench.config.schema import ExperimentConfig
from moebench.config.stackable import stack_key
from moebench.data.corpus import Corpus, prepare
from moebench.errors import TrainingError
from moebench.experiment import run_experiment, run_stack
from moebench.records import Record
from moebench.train.build import make_state
from moebench.train.feed import Feed
from moebench.train.loop import TrainingRun, train
from moebench.train.stack import GradientRequest, Stack, train_in_lockstep
from tests.results import results

CPU = torch.device("cpu")
COMPOSER = Composer()
ARMS = [
    *("scope=micro", "scope=global seed=1 optim.lr=0.01 loss.z=0.1", "scope=shuffled"),
    *("balance.estimator=ema router.perturb=1e-3", "scope=none"),
]


@pytest.fixture(autouse=True)
def no_fallback() -> Iterator[None]:
    """Operations without a vmap rule raise, where they would loop over the arms."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch._C._functorch._set_vmap_fallback_enabled(False)  # pyright: ignore
    yield
    torch._C._functorch._set_vmap_fallback_enabled(True)  # pyright: ignore
    torch.set_num_threads(threads)


@pytest.fixture
def arms(text_folder: Path):
    def made(*words: str, steps: int = 20) -> list[tuple[ExperimentConfig, Corpus]]:
        configs = [
            COMPOSER.compose(
                [
                    *("model=smoke", f"train.steps={steps}", "global_bsz=8", "seq_len=32"),
                    *("data.valid_sequences=4", "data=folder", f"data.path={text_folder}"),
                    *("run.device=cpu", "run.threads=1", "train.eval_every=0", *each.split()),
                ]
            )
            for each in words
        ]
        return [(config, prepare(config.data)) for config in configs]

    return made


def way(arm: TrainingRun):
    while not arm.done:
        step = arm.next_step()
        arm.finish(step, (yield GradientRequest(arm, step)))


def alone(config: ExperimentConfig, corpus: Corpus) -> dict[str, torch.Tensor]:
    state = make_state(config, corpus.vocab_size, CPU)
    for _ in train(config, corpus, state, CPU):
        pass
    return dict(state.model.state_dict())


@pytest.mark.parametrize("split", ["", "run.device_bsz=4"], ids=["whole", "counted first"])
def test_a_stacked_arm_is_the_arm_alone_bit_for_bit(arms, split: str) -> None:
    pairs = arms(*(f"{each} {split}" for each in ARMS))
    assert len({stack_key(config) for config, _ in pairs}) == 1
    states = [make_state(config, corpus.vocab_size, CPU) for config, corpus in pairs]
    made = [
        TrainingRun(config, corpus, each, CPU)
        for (config, corpus), each in zip(pairs, states, strict=True)
    ]
    assert train_in_lockstep([way(arm) for arm in made]) == [None] * len(ARMS)
    for pair, state in zip(pairs, states, strict=True):
        for name, value in alone(pair[0], pair[1]).items():
            assert torch.equal(value, state.model.get_parameter(name)), name


def test_a_stack_that_is_left_behind_holds_no_memory(arms) -> None:
    models = [
        make_state(config, corpus.vocab_size, CPU).model for config, corpus in arms(*ARMS[:2])
    ]
    gc.disable()
    try:
        stack = Stack(models)
        left = weakref.ref(stack)
        del stack
        assert left() is None
    finally:
        gc.enable()


ROUTED = [
    *("router=topk_softmax method=bias", "router=sparsemax router.form=mlp", "router=cosine"),
    *("router=noisy router.jitter=0.1", "router=random", "router=grouped method=bias"),
    *("router=capacity", "router=growing router.prune_below=0.5 router.prune_every=1"),
    *("router=relu method=remoe", "method=quantile", "method=expert_choice", "method=load_error"),
    *("method=simbal", "method=orthogonality", "method=specialize", "method=snippet"),
    *("model.moe=false", "model.dense_layers=1"),
]


@pytest.mark.parametrize("words", ROUTED)
def test_a_router_or_method_is_stacked_bit_for_bit(arms, words: str) -> None:
    pairs = arms(f"{words} seed=0", f"{words} seed=1", steps=3)
    assert len({stack_key(config) for config, _ in pairs}) == 1
    states = [make_state(config, corpus.vocab_size, CPU) for config, corpus in pairs]
    made = [
        TrainingRun(config, corpus, each, CPU)
        for (config, corpus), each in zip(pairs, states, strict=True)
    ]
    assert train_in_lockstep([way(arm) for arm in made]) == [None, None]
    for (config, corpus), state in zip(pairs, states, strict=True):
        for name, value in alone(config, corpus).items():
            assert torch.equal(value, state.model.get_parameter(name)), name


def test_a_method_that_cannot_be_stacked_is_not(arms) -> None:
    assert len({stack_key(config) for config, _ in arms("method=base", "method=base seed=1")}) == 2


def test_an_arm_that_dies_leaves_the_others_as_they_are(arms) -> None:
    pairs = arms("scope=micro", "scope=micro optim.lr=1e30", "scope=global", steps=8)
    states = [make_state(config, corpus.vocab_size, CPU) for config, corpus in pairs]
    made = [
        TrainingRun(config, corpus, each, CPU)
        for (config, corpus), each in zip(pairs, states, strict=True)
    ]
    one, dead, other = train_in_lockstep([way(arm) for arm in made])
    assert (one, other) == (None, None)
    assert isinstance(dead, TrainingError)
    assert states[1].step < 8
    for number in (0, 2):
        for name, value in alone(pairs[number][0], pairs[number][1]).items():
            assert torch.equal(value, states[number].model.get_parameter(name)), name


def test_arms_that_ended_free_the_stack(arms) -> None:
    [(config, corpus)] = arms("scope=micro")
    models = [make_state(config, corpus.vocab_size, CPU).model for _ in range(3)]
    Stack(models)
    Stack(models[:1])
    for parameter in models[0].parameters():
        assert parameter.untyped_storage().nbytes() == parameter.nbytes


def test_stacked_runs_begin_with_the_batches_and_weights_of_runs_alone(
    arms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    original = Feed.__call__

    def spy(feed: Feed, step: int):
        tokens, domain = original(feed, step)
        name = f"{feed.batches.seed} {step} "
        seen.append(name + hashlib.sha256(tokens.numpy().tobytes()).hexdigest())
        return tokens, domain

    monkeypatch.setattr(Feed, "__call__", spy)
    pairs = arms("scope=micro", "scope=global", "scope=global seed=1", steps=4)
    configs, corpora = zip(*pairs, strict=True)
    assert run_stack(configs, corpora, tmp_path / "stacked") == [None] * 3
    stacked, seen[:] = sorted(seen), []
    for config, corpus in pairs:
        run_experiment(config, corpus, tmp_path / "alone")
    assert stacked == sorted(seen)
    assert len(set(seen)) == 2 * 4, "arms of a seed share batches, those of another do not"
    for path in (tmp_path / "alone").glob("*-s*"):
        one, other = Record(path), Record(tmp_path / "stacked" / path.name)
        assert results(one) == results(other)
        assert other.damage() == []
        assert (one.manifest()["stacked"], other.manifest()["stacked"]) == (1, 3)


def test_keys_that_shape_a_step_are_not_stackable(arms) -> None:
    first, *others = (
        stack_key(config)
        for config, _ in arms(
            "scope=micro", "model.num_experts=4", "router=softmax_raw", "train.precision=bf16"
        )
    )
    assert all(other != first for other in others)

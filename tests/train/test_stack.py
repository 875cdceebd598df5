"""Stacked runs are what they are alone, whatever happens to another run of the stack.

They equal it but for rounding, and to the bit where products do not depend on their shape.
"""

import gc
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from moebench.config.compose import Composer
from moebench.config.schema import ExperimentConfig
from moebench.config.stackable import stack_key
from moebench.data.corpus import Corpus, prepare
from moebench.errors import TrainingError
from moebench.experiment import run_experiment, run_stack
from moebench.records import Record
from moebench.train.build import State, make_state
from moebench.train.feed import Feed
from moebench.train.loop import TrainingRun
from moebench.train.stack import GradientRequest, Stack, train_in_lockstep
from moebench.train.step import Outcome
from tests.processors import Same
from tests.results import measured, results
from tests.train.batches_seen import watched

SEQUENCES, LENGTH = 8, 32
CPU = torch.device("cpu")
COMPOSER = Composer()
ARMS = [
    *("scope=micro", "scope=global seed=1 optim.lr=0.01 loss.z=0.1"),
    "scope=shuffled optim.ema=0.3 optim.router_lr=3 router.init=10",
    *("balance.estimator=ema router.perturb=1e-3", "scope=none"),
]


@pytest.fixture(autouse=True)
def one_thread(no_fallback: None) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


Pair = tuple[ExperimentConfig, Corpus]
Compose = Callable[..., list[Pair]]


@pytest.fixture
def arms(text_folder: Path) -> Compose:
    def made(*words: str, steps: int = 10, precision: str | None = None) -> list[Pair]:
        configs = [
            COMPOSER.compose(
                [
                    *("model=smoke", f"train.steps={steps}", f"global_bsz={SEQUENCES}"),
                    *(f"seq_len={LENGTH}", "data.valid_sequences=4", "data=folder"),
                    *(f"data.path={text_folder}", "run.device=cpu", "run.threads=1"),
                    *(f"train.precision={each}" for each in (precision,) if each),
                    *("train.eval_every=0", *word.split()),
                ]
            )
            for word in words
        ]
        return [(config, prepare(config.data)) for config in configs]

    return made


class Trained(NamedTuple):
    """What a few steps made of a run; `gradients` and `outcome` are those of the first step."""

    state: State
    gradients: dict[str, Tensor]
    outcome: list[Outcome]
    error: Exception | None


def trained(pairs: Sequence[Pair], steps: int) -> list[Trained]:
    """Train runs as one stack, without the evaluation at the end."""
    runs = [
        Trained(make_state(config, corpus.vocab_size, CPU), {}, [], None)
        for config, corpus in pairs
    ]

    def steps_of(pair: Pair, run: Trained) -> Generator[GradientRequest, Outcome]:
        training = TrainingRun(*pair, run.state, CPU)
        for number in range(steps):
            step = training.next_step()
            outcome = yield GradientRequest(training, step)
            if number == 0:
                run.outcome.append(outcome)
                for name, each in run.state.model.named_parameters():
                    if each.grad is not None:
                        run.gradients[name] = each.grad.clone()
            training.finish(step, outcome)

    errors = train_in_lockstep([steps_of(*each) for each in zip(pairs, runs, strict=True)])
    return [run._replace(error=error) for run, error in zip(runs, errors, strict=True)]


def check(same: Same, stacked: Trained, pair: Pair, steps: int) -> None:
    """Hold a run of a stack against the same run alone."""
    same.given("stacks", stacked.state.model, SEQUENCES, LENGTH)
    [alone] = trained([pair], steps)
    assert stacked.error is alone.error is None
    assert stacked.gradients.keys() == alone.gradients.keys()
    for name, value in alone.gradients.items():
        same(stacked.gradients[name], value, f"gradient of {name}")
    for name, value in alone.state.model.state_dict().items():
        same(stacked.state.model.get_parameter(name).detach(), value, name)
    averages = alone.state.average or {}
    assert averages.keys() == (stacked.state.average or {}).keys()
    for name, value in averages.items():
        same(stacked.state.average[name], value, f"average of {name}")  # pyright: ignore


@pytest.mark.parametrize("split", ["", "run.device_bsz=4"], ids=["whole", "counted first"])
def test_stacked_runs_are_those_runs_alone(arms: Compose, same: Same, split: str) -> None:
    pairs = arms(*(f"{each} {split}" for each in ARMS), precision=same.precision)
    assert len({stack_key(config) for config, _ in pairs}) == 1
    for pair, stacked in zip(pairs, trained(pairs, 5), strict=True):
        check(same, stacked, pair, 5)


def test_a_step_in_fp32_is_that_of_the_run_alone(arms: Compose, same: Same) -> None:
    pairs = arms(*ARMS)
    for pair, stacked in zip(pairs, trained(pairs, 1), strict=True):
        same.given("stacks", stacked.state.model, SEQUENCES, LENGTH)
        [alone] = trained([pair], 1)
        [one], [other] = stacked.outcome, alone.outcome
        assert torch.equal(one.routing.expert_index, other.routing.expert_index)
        for name in ("prob_mass", "logsumexp_sq", "topk_mass"):
            same(getattr(one.routing, name), getattr(other.routing, name), name)
        same(one.cross_entropy, other.cross_entropy, "cross-entropy")
        # as one vector: a small part of it, such as the gradient of a scalar, may be a difference
        # of large numbers, whose last places say little
        one, other = (
            torch.cat([*map(torch.flatten, run.gradients.values())]) for run in (stacked, alone)
        )
        same(one, other, "gradient")


def test_a_stack_that_is_left_behind_holds_no_memory(arms: Compose) -> None:
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
    *("method=importance_load", "method=erc", "balance.counts=first"),
    *("experiment=inkling router.softcap=5 router.expert_scale=true", "experiment=longcat-flash"),
    *("router=grouped_max method=bias_logits", "router=sigmoid method=smebu"),
    *("method=expert_threshold", "method=moving_quantile", "method=causal_bias"),
    *("router=round_robin", "experiment=deepseek-v4"),
    *("model.moe=false", "model.dense_layers=1"),
]


@pytest.mark.parametrize("words", ROUTED)
def test_every_router_and_method_is_stacked(arms: Compose, same: Same, words: str) -> None:
    pairs = arms(f"{words} seed=0", f"{words} seed=1", precision=same.precision)
    assert len({stack_key(config) for config, _ in pairs}) == 1
    stacked = trained(pairs, 3)
    check(same, stacked[1], pairs[1], 3)


def test_a_method_that_cannot_be_stacked_is_not(arms: Compose) -> None:
    assert len({stack_key(config) for config, _ in arms("method=base", "method=base seed=1")}) == 2


def test_arms_whose_models_count_something_else_are_not_stacked(arms: Compose) -> None:
    counts = [f"balance.counts={each}" for each in ("scores", "biased")]
    plain, biased = ([f"{more} {each}" for each in counts] for more in ("seed=1", "method=bias"))
    assert len({stack_key(config) for config, _ in arms(*plain)}) == 1
    assert len({stack_key(config) for config, _ in arms(*biased)}) == 2


def test_a_run_that_fails_leaves_the_others_as_they_are(arms: Compose, same: Same) -> None:
    words = "scope=micro", "scope=micro optim.lr=1e300", "scope=global"
    pairs = arms(*words, precision=same.precision)
    one, failed, other = trained(pairs, 6)
    assert isinstance(failed.error, TrainingError)
    assert failed.state.step < 6
    check(same, one, pairs[0], 6)
    check(same, other, pairs[2], 6)


def test_arms_that_ended_free_the_stack(arms: Compose) -> None:
    [(config, corpus)] = arms("scope=micro")
    models = [make_state(config, corpus.vocab_size, CPU).model for _ in range(3)]
    Stack(models)
    Stack(models[:1])
    for parameter in models[0].parameters():
        assert parameter.untyped_storage().nbytes() == parameter.nbytes


def floats(row: dict[str, Any]) -> Tensor:
    found = [float.fromhex(value) for value in row.values() if isinstance(value, str)]
    return torch.tensor(found, dtype=torch.float64)


def test_records_of_stacked_runs_are_those_of_the_runs_alone(
    arms: Compose, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(Feed, "__call__", watched(seen))
    words = "scope=micro", "scope=global", "scope=global seed=1"
    pairs = arms(*words, steps=2, precision=same.precision)
    configs, corpora = zip(*pairs, strict=True)
    config, corpus = pairs[0]
    same.given("stacks", make_state(config, corpus.vocab_size, CPU).model, SEQUENCES, LENGTH)
    assert run_stack(configs, corpora, tmp_path / "stacked") == [None] * 3
    stacked, seen[:] = sorted(seen), []
    for config, corpus in pairs:
        run_experiment(config, corpus, tmp_path / "alone")
    assert stacked == sorted(seen)
    assert len(set(seen)) == 2 * 2, "arms of a seed share batches, those of another do not"
    for path in (tmp_path / "alone").glob("*-s*"):
        one, other = Record(path), Record(tmp_path / "stacked" / path.name)
        assert other.damage() == []
        assert (one.manifest()["stacked"], other.manifest()["stacked"]) == (1, 3)
        if same.exact:
            assert results(other) == results(one)
        for row, wanted in zip(measured(other), measured(one), strict=True):
            assert row.keys() == wanted.keys()
            same(floats(row), floats(wanted), f"row of step {row['step']}")


def test_keys_that_shape_a_step_are_not_stackable(arms: Compose) -> None:
    first, *others = (
        stack_key(config)
        for config, _ in arms(
            "scope=micro", "model.num_experts=4", "router=softmax_raw", "train.precision=bf16"
        )
    )
    assert all(other != first for other in others)

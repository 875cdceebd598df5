"""Every method in training: splits of a step do not change it, and a run resumes to the bit."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moebench import methods
from moebench.config.compose import Composer
from moebench.config.schema import ExperimentConfig
from moebench.data.corpus import Corpus, prepare
from moebench.errors import ConfigError
from moebench.experiment import run_experiment
from moebench.train.build import State, make_objective, make_state
from moebench.train.checkpoint import restore, save_checkpoint
from moebench.train.gradients import accumulate_gradients
from moebench.train.loop import TrainingRun
from tests.results import results, stopped

CPU = torch.device("cpu")
COMPOSER = Composer()
SMALL = [
    *("model=smoke", "train.steps=6", "global_bsz=8", "seq_len=16", "data.valid_sequences=2"),
    *("data=folder", "run.device=cpu", "run.threads=1", "run.log_every=1", "train.eval_every=0"),
    "run.checkpoint_every=2",
]
GATE = ["router.gate=relu", "router.renormalize=false"]
# strong enough to have an effect within four steps
METHODS = {
    "quantile": ["method=quantile"],
    "threshold": ["method=quantile_dynamic"],
    "expert_choice": ["method=expert_choice"],
    "base": ["method=base"],
    "sinkhorn": ["method=sinkhorn"],
    "load_error": ["method=load_error", "method.options.weight=1"],
    "simbal": ["method=simbal"],
    "orthogonality": ["method=orthogonality", "method.options.weight=1"],
    "specialize": ["method=specialize", "method.options.orthogonality=1"],
    "remoe": ["method=remoe", "method.options.start=0.01", *GATE],
}
Compose = Callable[..., ExperimentConfig]


@pytest.fixture
def compose(text_folder: Path) -> Compose:
    return lambda *words: COMPOSER.compose([*SMALL, f"data.path={text_folder}", *words])


@pytest.mark.parametrize("name", METHODS)
def test_a_method_acts_and_no_split_of_a_step_changes_it(
    compose: Compose, tmp_path: Path, name: str
) -> None:
    values = {}
    for name_of_run, words in {
        "none": ["method=none", *(GATE if name == "remoe" else [])],
        "whole": METHODS[name],
        "halves": [*METHODS[name], "run.device_bsz=4"],
    }.items():
        config = compose("train.precision=fp64", *words)
        record = run_experiment(config, prepare(config.data), tmp_path / name_of_run)
        values[name_of_run] = [
            list(record.rows())[-1][key] for key in ("train/loss", "train/grad_norm", "valid/nats")
        ]
    assert values["halves"] == pytest.approx(values["whole"], rel=1e-9)
    assert values["whole"] != pytest.approx(values["none"], rel=1e-6)


def stateful() -> list[str]:
    """The methods that carry a state from step to step, whichever are declared."""
    targets = {each.name: each.load() for each in methods.SHIPPED if each.target is not None}
    return [name for name, target in targets.items() if target.State is not None]


# so that every state changes between steps; a method that is not here needs no more than its name
WITH_STATE = {
    **METHODS,
    "budget": ["method.name=budget", "model.zero_experts=2"],
    "moving_quantile": ["method=moving_quantile", "router=sigmoid"],
    "snippet": ["method=snippet", "method.options.every=3", "method.options.weight=1"],
}


def steps_to(last: int, config: ExperimentConfig, corpus: Corpus, state: State) -> State:
    """Train to a step."""
    run = TrainingRun(config, corpus, state, CPU)
    while state.step < last:
        step = run.next_step()
        outcome = accumulate_gradients(state.model, run.objective, step, state.balance)
        run.finish(step, outcome)
    return state


@pytest.mark.parametrize("name", stateful())
def test_the_state_of_a_method_is_resumed_to_the_bit(
    compose: Compose, tmp_path: Path, name: str
) -> None:
    words = WITH_STATE.get(name, [f"method={name}"])
    config = compose(*words)
    corpus = prepare(config.data)
    objective = make_objective(config, corpus.domains)
    begin, cut, whole, resumed = (make_state(config, corpus.vocab_size, CPU) for _ in range(4))
    steps_to(1, config, corpus, begin)
    save_checkpoint(tmp_path, steps_to(3, config, corpus, cut))
    restore(resumed, tmp_path / "step-3", objective, CPU)
    for state in (whole, resumed):
        steps_to(5, config, corpus, state)
    tensors = [_tensors(state) for state in (begin, cut, whole, resumed)]
    assert all(torch.equal(tensors[2][key], tensors[3][key]) for key in tensors[2])
    own = [key for key in tensors[2] if key.startswith("method ")]
    assert own
    for one, other in itertools.pairwise(tensors[:3]):
        changed = [key for key in own if not torch.equal(one[key], other[key])]
        assert changed, "a state that never changes needs no checkpoint"


def _tensors(state: State) -> dict[str, Tensor]:
    """Weights, moments and states by name."""
    found = dict(state.model.state_dict())
    for name, parameter in state.model.named_parameters():
        moments = state.optimizer.state[parameter]
        found |= {f"{kind} of {name}": value for kind, value in moments.items()}
    for number, each in enumerate(state.balance or ()):
        for field in () if each is None else each._fields:
            found[f"method {number} {field}"] = getattr(each, field)
    return {name: value.clone() for name, value in found.items()}


def test_a_stopped_run_with_a_state_is_resumed_to_the_bit(compose: Compose, tmp_path: Path) -> None:
    config = compose(*METHODS["threshold"])
    corpus = prepare(config.data)

    whole = run_experiment(config, corpus, tmp_path / "whole")
    stopped(config, corpus, tmp_path / "cut", step=3)
    resumed = run_experiment(config, corpus, tmp_path / "cut", resume=True)
    assert results(resumed) == results(whole)


def test_the_snippet_refuses_a_split_step(compose: Compose, tmp_path: Path) -> None:
    config = compose("method=snippet", "run.device_bsz=4")
    with pytest.raises(ConfigError, match="takes a step as one pass"):
        run_experiment(config, prepare(config.data), tmp_path)


@pytest.mark.parametrize("name", ["expert_choice", "base", "sinkhorn", "quantile"])
def test_the_loss_under_assignment_is_a_metric_of_its_own(
    compose: Compose, tmp_path: Path, name: str
) -> None:
    config = compose(*METHODS[name])
    summary = run_experiment(config, prepare(config.data), tmp_path).summary()
    assert ("assigned/nats" in summary) == (name != "quantile")
    if name != "quantile":
        assert 0 < summary["assigned/nats"] != summary["valid/nats"]

"""Every method in training: splits of a step do not change it, and a run resumes to the bit."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from moebench.config.compose import Composer
from moebench.config.schema import ExperimentConfig
from moebench.data.corpus import prepare
from moebench.errors import ConfigError, Stopped
from moebench.experiment import run_experiment
from moebench.train.loop import Event
from tests.results import results

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


@pytest.mark.parametrize("name", ["quantile", "specialize", "remoe", "threshold", "snippet"])
def test_the_state_of_a_method_is_resumed_to_the_bit(
    compose: Compose, tmp_path: Path, name: str
) -> None:
    snippet = ["method=snippet", "method.options.every=3", "method.options.weight=1"]
    config = compose(*METHODS.get(name, snippet))
    corpus = prepare(config.data)

    def stop(event: Event) -> None:
        if event.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    whole = run_experiment(config, corpus, tmp_path / "whole")
    with pytest.raises(Stopped):
        run_experiment(config, corpus, tmp_path / "cut", on_event=stop)
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

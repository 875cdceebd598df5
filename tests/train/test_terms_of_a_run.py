"""Terms that start and stop: an arm equals its parent until the switch, and resumes exactly."""

from collections.abc import Callable
from pathlib import Path

import pytest

from moebench.config.compose import Composer
from moebench.config.schema import ExperimentConfig
from moebench.data.corpus import prepare
from moebench.errors import ConfigError
from moebench.experiment import run_experiment
from tests.results import measured, results, stopped

COMPOSER = Composer()
SMALL = [
    *("model=smoke", "train.steps=8", "global_bsz=8", "seq_len=16", "data.valid_sequences=2"),
    *("data=folder", "run.device=cpu", "run.threads=1", "run.log_every=1", "train.eval_every=4"),
    *("loss.balance=0.5", "run.checkpoint_every=3"),
]
Compose = Callable[..., ExperimentConfig]


@pytest.fixture
def compose(text_folder: Path) -> Compose:
    return lambda *words: COMPOSER.compose([*SMALL, f"data.path={text_folder}", *words])


def test_a_switch_arm_is_its_parent_until_the_switch(compose: Compose, tmp_path: Path) -> None:
    switch = "balance.terms=[{stop:0.5},{scope:global,start:0.5}]"
    parent, arm = compose("scope=micro"), compose("scope=micro", switch)
    corpus = prepare(parent.data)
    before = measured(run_experiment(parent, corpus, tmp_path))
    after = measured(run_experiment(arm, corpus, tmp_path))
    logged = "train/balance_weight"  # only if the weight can change
    rows = [{key: value for key, value in row.items() if key != logged} for row in after]
    assert rows[:5] == before[:5], "steps 0 to 4, evaluation included"
    assert rows[5]["train/loss"] == before[5]["train/loss"], (
        "the loss is of the weights before the switch"
    )
    assert rows[5]["train/grad_norm"] != before[5]["train/grad_norm"]
    assert rows[8]["valid/nats"] != before[8]["valid/nats"]


@pytest.mark.parametrize(
    "words",
    [
        ["balance.estimator=ema", "balance.window_steps=3"],
        ["balance.estimator=stale", "balance.terms=[{},{scope:micro,weight:0.1,start:4,ramp:2}]"],
        ["balance.window_steps=4", "balance.estimator_error=true"],
        ["scope=domain", "balance.estimator=buffer", "balance.terms=[{domains:{digits:2}}]"],
    ],
    ids=["ema", "stale and a ramp", "window", "domain"],
)
def test_the_state_of_a_term_is_resumed_to_the_bit(
    compose: Compose, tmp_path: Path, words: list[str]
) -> None:
    config = compose(*words)
    corpus = prepare(config.data)

    whole = run_experiment(config, corpus, tmp_path / "whole")
    stopped(config, corpus, tmp_path / "cut", step=5)
    resumed = run_experiment(config, corpus, tmp_path / "cut", resume=True)
    assert results(resumed) == results(whole)


def test_the_weight_of_an_unknown_domain_is_an_error(compose: Compose, tmp_path: Path) -> None:
    config = compose("scope=domain", "balance.terms=[{domains:{klingon:2}}]")
    with pytest.raises(ConfigError, match="the data has no domain klingon; its domains are"):
        run_experiment(config, prepare(config.data), tmp_path)

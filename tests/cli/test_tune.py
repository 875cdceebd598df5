"""`moebench tune study=`, and the sweep of what it found. No run is trained here."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moebench import tuning
from moebench.config.compose import Composer
from moebench.errors import Stopped
from moebench.plans import read_plan
from moebench.searches import Outcome
from moebench.study import make_plan
from moebench.study.axes import searches_of
from tests.calls import Call
from tests.searching import INSTALLED, stand_in

STUDY = """\
question: Which?
overrides: [model=smoke, global_bsz=8, seq_len=32, data.valid_sequences=4, 'seed=0,1']
arms:
  - scope=global loss.balance=0.001..1 optim.lr=0.001..0.01
  - scope=global loss.balance=tuned optim.lr=tuned router.perturb=1e-6
  - scope=none optim.lr=0.001..0.01
baseline: global
sizes: {cpu: [train.steps=6]}
trials: {cpu: 2}
"""
SCOPES = ("global", "none")
CONTROL = "scope=global loss.balance=tuned optim.lr=tuned router.perturb=1e-6"


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The configs of the trials; each costs what its learning rate is."""
    configs: list[Any] = []
    if not INSTALLED:
        monkeypatch.setitem(sys.modules, "optuna", stand_in())

    def train(treatment: Any, corpus: Any, folder: Path, **named: Any) -> Any:
        configs.append(treatment.config)
        return SimpleNamespace(summary=lambda: {"tune/nats": treatment.config.optim.lr})

    monkeypatch.setattr(tuning, "run_experiment", train)
    return configs


@pytest.fixture
def words(text_folder: Path, tmp_path: Path) -> list[str]:
    path = tmp_path / "presets" / "study" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(STUDY)
    data = ["data=folder", f"data.path={text_folder}", "run.threads=1"]
    return ["study=mine", *data, "--config-dir", str(tmp_path / "presets")]


def planned(call: Call, words: list[str]) -> list[dict[str, Any]]:
    result = call("sweep", *words, "--print-config", "--json")
    assert result.code == 0, result.err
    return [run["config"] for run in json.loads(result.out)["runs"]]


def test_each_arm_has_its_trials_and_the_sweep_their_values(
    call: Call, words: list[str], trained: list[Any]
) -> None:
    sweep = call("sweep", *words, "--dry-run")
    assert sweep.code == 2
    line = "error: study=mine: no trial has chosen the values of its arms yet; run moebench tune "
    assert sweep.err.startswith(line + "study=mine data=folder")
    tune = call("tune", *words)
    assert tune.code == 0, tune.err
    assert [(config.scope, config.seed) for config in trained] == [
        *[("global", 1000)] * 2,
        *[("none", 1000)] * 2,
    ]
    best = {scope: min(c.optim.lr for c in trained if c.scope == scope) for scope in SCOPES}
    weight = next(c.loss.balance for c in trained if c.optim.lr == best["global"])
    assert tune.out.splitlines() == [
        f"scope=global: loss.balance={weight:g} optim.lr={best['global']:g}",
        f"scope=none: optim.lr={best['none']:g}",
    ]
    assert "arm 2/2: scope=none  optim.lr=0.001..0.01" in tune.err
    assert "moebench sweep study=mine" in tune.err.splitlines()[-1]
    assert {
        (c["scope"], c["router"]["perturb"], c["optim"]["lr"], c["seed"])
        for c in planned(call, words)
    } == {
        (scope, perturb, best[scope], seed)
        for scope, perturb in (("global", 0), ("global", 1e-6), ("none", 0))
        for seed in (0, 1)
    }
    *typed, _, presets = words
    plan = make_plan(Composer(Path(presets)), typed)
    assert read_plan(plan.write(Path("runs"))) == plan
    (first, other) = plan.searches
    assert first.arms == ("global", "global perturb=1e-06")
    assert (first.trials, first.failed, first.seeds) == (2, 0, (1000,))
    assert first.values == f"loss.balance={weight:g} optim.lr={best['global']:g}"
    assert (other.arms, other.ranges) == (("none",), ("optim.lr=0.001..0.01",))
    assert plan.tuned_by[:2] == ("tune", "study=mine")
    assert plan.tuned_by[-2:] == ("--trials", "2")
    used = call("sweep", *words, "--dry-run", "seed=1000")
    assert (used.code, used.err) == (
        2,
        "error: seed=1000: trials of study=mine used it; take seeds below 1000\n",
    )


def test_a_baseline_with_values_of_a_search_follows_typed_words(
    call: Call, words: list[str], trained: list[Any]
) -> None:
    *typed, _, presets = words
    typed += ["experiment=megatron-micro", "global_bsz=8"]
    assert call("tune", *typed, "--config-dir", presets).code == 0
    plan = make_plan(Composer(Path(presets)), typed)
    assert plan.baseline == "global layers=sum"


def test_arms_with_fewer_trials_are_completed_by_the_command_that_is_named(
    call: Call, words: list[str], trained: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = tuning.run_experiment

    def stop(treatment: Any, corpus: Any, folder: Path, **named: Any) -> Any:
        if len(trained) == 4:
            raise Stopped(folder, 1, 6)
        return train(treatment, corpus, folder, **named)

    monkeypatch.setattr(tuning, "run_experiment", stop)
    assert call("tune", *words, "--trials", "3").code != 0
    sweep = call("sweep", *words, "--dry-run")
    assert sweep.code == 2
    assert sweep.err.startswith("error: study=mine: scope=none has 1 of 3 trials, and each arm ")
    assert sweep.err.count("\n") == 1
    command = sweep.err.rpartition(" by moebench ")[2].split()
    assert command[-4:-2] == ["--trials", "3"]
    monkeypatch.setattr(tuning, "run_experiment", train)
    assert call(*command).code == 0
    assert len(trained) == 6
    assert len(planned(call, words)) == 6


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (["optim.lr=1e-3..1e-2"], "error: --trials: is missing; say how many trials"),
        (["study=demo"], "error: study=demo: has no ranges to search; give an arm some"),
        (["--seeds", "2"], "error: --seeds 2: a study sets the seeds of its trials; type study.tr"),
        (["study.trials={}"], "error: --trials: is missing, and study.trials says none for this"),
        (["study.trials={cpu:0}"], "error: study.trials.cpu=0: must be at least 1"),
        (
            [f"study.arms=['{CONTROL}']"],
            f"error: study.arms={CONTROL}: no arm above has ranges of loss.balance, optim.lr",
        ),
        (["study.arms=['scope=none optim.lr=2..1']"], "error: optim.lr=2..1: holds no values"),
    ],
)
def test_searches_that_cannot_be_made(
    typed: list[str], line: str, call: Call, words: list[str], trained: list[Any]
) -> None:
    chosen = words[1:] if typed[0].startswith(("optim", "study=")) else words
    result = call("tune", *chosen, *typed)
    assert result.code == 2
    assert result.err.startswith(line)
    assert result.err.count("\n") == 1
    assert not trained


def test_the_shipped_study_gives_each_arm_the_same_search(
    text_folder: Path, tmp_path: Path
) -> None:
    typed = ["study=tuned_methods", "data=folder", f"data.path={text_folder}"]
    typed += ["data.valid_sequences=4", "data.max_epochs=1e9"]
    composer = Composer()
    study = composer.study("tuned_methods")
    assert study.trials.keys() == study.sizes.keys()
    spaces = searches_of(composer, typed, tmp_path).spaces()
    for space in spaces.values():
        *strength, rate = space.intervals
        assert (rate.key, rate.low, rate.high, rate.log) == ("optim.lr", 3e-4, 3e-2, True)
        assert all(each.log and each.high == 1000 * each.low for each in strength)
        values = " ".join(each.word(each.at(0.5)) for each in space.intervals)
        space.write([Outcome(0, values, 2.0)], 1)
    plan = make_plan(composer, typed, runs_dir=tmp_path)
    arms = {job.arm for job in plan.jobs}
    assert {"global", "global perturb=1e-06", "micro", "micro homogeneity=0", "none"} < arms
    assert [search.trials for search in plan.searches] == [1] * len(spaces) == [1] * 7
    assert sum(len(search.arms) for search in plan.searches) == len(arms) == 9

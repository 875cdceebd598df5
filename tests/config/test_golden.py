"""Names and identities stay what they were: a record made by an older version is found again.

`golden.json` holds the label and hashes of every preset, of every arm of every study in every
size, and of every plan, whose hash covers the names of its runs. A change that moves one of them
makes every record under the old name unreachable. To add entries for new presets and studies:
`python -m tests.config.test_golden`.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from moebench.config.compose import Composer, from_dict
from moebench.config.identity import arm_hash, label, run_name, science
from moebench.config.schema import StudyConfig
from moebench.report.paper.verdicts import Evidence, effects
from moebench.study import Plan, make_plan, plan

GOLDEN = Path(__file__).with_name("golden.json")
CONTENT = "c0ffee0000"  # stands for the hash of data and tokenizer
COMPOSER = Composer()
DATA = ["data=folder", "data.path=texts"]
PRESETS = [
    f"{group}={preset}"
    for group in COMPOSER.groups
    for preset in COMPOSER.choices(group)
    if group not in ("data", "scope") and preset != "replay"  # which needs a run
]
SCOPES = [
    "scope=none",
    "scope=sequence",
    "scope=micro",
    "scope=shuffled",
    "scope=global",
    "scope=domain",
]
STUDIES = [
    f"study={study} study.size={size}"
    for study in COMPOSER.choices("study")
    for size in COMPOSER.study(study).sizes or [StudyConfig.size]
    if not COMPOSER.study(study).trials  # a search chooses its values
]
# One treatment under several names, and what only typed values reach.
TYPED = [
    *SCOPES,
    *("scope=global balance_bsz=4", "scope=global balance_bsz=64", "scope=shuffled balance_bsz=4"),
    *("scope=shuffled balance_bsz=32", "micro_bsz=1 scope=sequence", "scope=micro loss.balance=0"),
    *("scope=global balance.estimator=buffer", "scope=micro balance.estimator=buffer"),
    *("balance.estimator=ema", "balance.estimator=ema balance.decay=0", "balance.window_steps=4"),
    *("balance.layers=sum balance.uniform=k", "balance.probs=top_k", "loss.local=0.01"),
    *("scope=micro loss.local=0.01", "loss.z=0.001 scope=none", "model.moe=false"),
    "balance.terms=[{scope:global},{scope:micro,weight:0.01,start:0.5,ramp:10}]",
    *("scope=domain balance.terms=[{scope:domain,domains:{a:2}}]", "method=bias scope=none"),
    *("method=bias method.options.rate=0.01", "router=sigmoid method=bias", "router=topk_softmax"),
    *("data.homogeneity=0", "router.perturb=1e-6", "model.dense_layers=1", "router=capacity"),
    *("seed=7 optim.lr=0.001 train.steps=40", "router=growing", "train.precision=bf16"),
]


def composed(words: str) -> dict[str, str]:
    config = COMPOSER.compose([*DATA, *words.split()])
    return {
        "label": label(config),
        "arm": arm_hash(config, CONTENT),
        "run": run_name(config, CONTENT),
    }


def planned(words: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(plan, "prepare", lambda *_, **__: SimpleNamespace(content_hash=CONTENT))
    for check in ("check_epochs", "check_map"):
        monkeypatch.setattr(plan, check, lambda *_: None)
    made = make_plan(COMPOSER, [*words.split(), *DATA])
    arms = {job.arm_hash: job.arm for job in made.jobs}
    return {"plan": made.slug, "baseline": made.baseline, "runs": len(made.jobs), "arms": arms}


def has_findings(made: Plan) -> set[str]:
    """The findings on the primary endpoint whose arms a plan has."""
    configs = {job.arm_hash: from_dict(job.config) for job in made.jobs}
    sciences = [science(config, CONTENT) for config in configs.values()]
    values = np.random.default_rng(0).normal(size=(6, len(sciences)))
    return {effect.name for effect in effects(Evidence([*configs], sciences, values, None))}


def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_bytes())


@pytest.mark.parametrize("words", [*PRESETS, *TYPED])
def test_a_config_keeps_its_names(words: str) -> None:
    assert composed(words) == golden()["configs"][words]


@pytest.mark.parametrize("words", STUDIES)
def test_a_study_is_planned_and_keeps_its_names(
    words: str, text_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both at once: nearly all of the time goes into the composition of its presets."""
    data = ["data=folder", f"data.path={text_folder}", "data.valid_sequences=4"]
    made = make_plan(COMPOSER, [*words.split(), *data, "data.max_epochs=1e9"])
    assert made.question
    assert made.baseline in {job.arm for job in made.jobs}
    arms = {job.arm_hash for job in made.jobs}
    assert len(arms) > 1
    assert len(made.jobs) == len(arms) * len({job.seed for job in made.jobs}), "every arm, any seed"
    assert {*made.order} <= has_findings(made)
    assert planned(words, monkeypatch) == golden()["studies"][words]


def test_nothing_golden_is_left_out() -> None:
    assert golden()["configs"].keys() == {*PRESETS, *TYPED}
    assert golden()["studies"].keys() == {*STUDIES} >= {"study=demo study.size=cpu"}


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        kept = {
            "configs": {words: composed(words) for words in [*PRESETS, *TYPED]},
            "studies": {words: planned(words, patch) for words in STUDIES},
        }
    GOLDEN.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")

"""Every shipped preset composes, and every shape of model takes a step that is finite."""

import math
from pathlib import Path

import pytest

from moebench.config.compose import Composer, shipped_conf
from moebench.data.corpus import prepare
from moebench.experiment import run_experiment
from moebench.study import make_plan

CONF = shipped_conf()
PRESETS = sorted(
    f"{path.parent.name}={path.stem}"
    for path in CONF.glob("*/*.yaml")
    if path.parent.name != "study"
)
STUDIES = sorted(path.stem for path in (CONF / "study").glob("*.yaml"))


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_composes(preset: str) -> None:
    needs = ["data.path=texts"] if preset == "data=folder" else []
    config = Composer().compose([preset, *needs])
    group, name = preset.split("=")
    if group == "scope":
        assert config.scope == name


@pytest.mark.parametrize(
    "model", ["smoke", "tiny", "small", pytest.param("base", marks=pytest.mark.slow)]
)
def test_model_takes_a_step(model: str, text_folder: Path, tmp_path: Path) -> None:
    config = Composer().compose(
        [
            f"model={model}",
            "data=folder",
            f"data.path={text_folder}",
            "train.steps=1",
            "seq_len=16",
            "global_bsz=8",
            "data.valid_sequences=2",
            "run.device=cpu",
        ]
    )
    summary = run_experiment(config, prepare(config.data), tmp_path).summary()
    assert math.isfinite(summary["valid/nats"])


@pytest.mark.parametrize("name", STUDIES)
def test_study_can_be_planned_in_each_of_its_sizes(name: str, text_folder: Path) -> None:
    composer = Composer()
    for size in composer.study(name).sizes:
        typed = ["data=folder", f"data.path={text_folder}", "seq_len=16", "data.max_epochs=1e9"]
        typed = [each for each in typed if size != "gpu" or "max_epochs" not in each]
        overrides = [f"study={name}", f"study.size={size}", *typed, "train.steps=1"]
        plan, _ = make_plan(composer, overrides)
        assert plan.baseline in {job.arm for job in plan.jobs}
        assert len({job.arm for job in plan.jobs}) == len({job.arm_hash for job in plan.jobs})


@pytest.mark.parametrize("name", STUDIES)
def test_study_says_what_it_answers_and_what_would_contradict_it(name: str) -> None:
    text = (CONF / "study" / f"{name}.yaml").read_text()
    header = "".join(line for line in text.splitlines() if line.startswith("#"))
    assert "2501.11873" in header
    assert "ontradicted by" in header
    assert Composer().study(name).question

"""Every preset that is shipped composes and works."""

import re
from pathlib import Path

import pytest
import yaml

from moebench.config.compose import Composer
from moebench.config.identity import label
from moebench.config.presets import shipped_conf
from moebench.data.corpus import prepare

COMPOSER = Composer()
PRESETS = [
    f"{group}={preset}"
    for group in COMPOSER.groups
    for preset in COMPOSER.choices(group)
    if group != "data" and preset != "replay"  # which needs a run, see train/test_router_replay.py
]
PARTNERS = {
    "router=domain_token": ("model.num_experts=12",),  # three domains, top-2
}
FILES = sorted(shipped_conf().glob("*/*.yaml"))


def data(folder: Path) -> list[str]:
    return ["data=folder", f"data.path={folder}", "data.valid_sequences=4"]


def step(folder: Path, tmp_path: Path, *overrides: str) -> None:
    """Train a run of one step on few tokens."""
    from moebench.experiment import run_experiment

    config = COMPOSER.compose(
        [
            *("global_bsz=8", "seq_len=32", "train.steps=1", "run.device=cpu", "run.threads=1"),
            *(*data(folder), *overrides),
        ]
    )
    record = run_experiment(config, prepare(config.data), tmp_path)
    assert record.summary()["steps"] == 1
    assert record.damage() == []


def test_there_are_presets() -> None:
    assert {"model=tiny", "scope=micro", "loss=balance", "optim=adamw"} <= set(PRESETS)


@pytest.mark.parametrize("preset", [each for each in PRESETS if not each.startswith("model=")])
def test_a_preset_takes_a_step(text_folder: Path, tmp_path: Path, preset: str) -> None:
    step(text_folder, tmp_path, "model=smoke", preset, *PARTNERS.get(preset, ()))


@pytest.mark.parametrize("model", [each for each in COMPOSER.choices("model") if each != "base"])
def test_a_model_takes_a_step(text_folder: Path, tmp_path: Path, model: str) -> None:
    step(text_folder, tmp_path, f"model={model}")


def test_the_largest_model_composes() -> None:
    assert COMPOSER.compose(["model=base"]).model.num_experts == 64


def test_every_source_of_data_composes(text_folder: Path) -> None:
    for source in COMPOSER.choices("data"):
        more = {
            "folder": [f"data.path={text_folder}"],
            "huggingface": ["data.name=org/text"],
            "mixture": [f'data.sources=["synthetic overlap=1","folder path={text_folder}"]'],
        }.get(source, [])
        assert COMPOSER.compose([f"data={source}", *more]).data.source == source


@pytest.mark.parametrize("scope", COMPOSER.choices("scope"))
def test_a_scope_is_labelled_by_its_own_name(scope: str) -> None:
    assert label(COMPOSER.compose([f"scope={scope}"])) == scope


def test_a_peer_names_its_file_or_paper_and_the_date() -> None:
    peers = [each for each in FILES if each.parent.name == "experiment"]
    for path in (each for each in peers if not each.stem.endswith("-bpe")):
        comment = " ".join(re.findall("^# (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE))
        assert re.search(r"\.(py|yaml|yml)\b|arXiv", comment), path.name
        assert re.search(r"arXiv \d{4}\.\d{5}|20\d\d-\d\d|transformers \d", comment), path.name


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_preset_says_what_it_is_and_sets_its_own_group_alone(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    comment = [line for line in text.splitlines() if re.match("# (?!@)", line)]
    assert comment, "a preset opens with what it is"
    assert text.startswith("#")
    if path.parent.name in ("scope", "experiment", "method"):
        return
    assert "@package" not in text
    assert isinstance(yaml.safe_load(text), dict)


def test_an_untyped_default_is_the_preset_that_config_yaml_names() -> None:
    defaults = yaml.safe_load((shipped_conf() / "config.yaml").read_bytes())["defaults"]
    named = [
        f"{k}={v}" for each in defaults if isinstance(each, dict) for k, v in each.items() if v
    ]
    assert named[0] == "model=tiny"
    assert COMPOSER.compose(named) == COMPOSER.compose()

"""A small run, and its data."""

from collections.abc import Callable
from pathlib import Path

import pytest

from moebench.config.compose import Composer
from moebench.config.schema import ExperimentConfig
from moebench.data.corpus import Corpus, prepare

COMPOSER = Composer()
SMALL = (
    "model=smoke",
    "train.steps=12",
    "train.eval_every=5",
    "global_bsz=8",
    "seq_len=32",
    "data=folder",
    "data.valid_sequences=4",
    "run.device=cpu",
    "run.threads=1",
    "run.log_every=1",
    "run.checkpoint_every=4",
)

Compose = Callable[..., ExperimentConfig]


@pytest.fixture
def compose(text_folder: Path) -> Compose:
    """Compose a small run with the given overrides; a later one wins."""

    def made(*overrides: str) -> ExperimentConfig:
        all_of_them = (*SMALL, f"data.path={text_folder}", *overrides)
        return COMPOSER.compose(list({each.split("=")[0]: each for each in all_of_them}.values()))

    return made


@pytest.fixture
def corpus(compose: Compose) -> Corpus:
    return prepare(compose().data)

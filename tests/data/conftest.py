"""Small folders of text, and a separate cache for each test."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from moebench.config.schema import DataConfig
from moebench.data.corpus import Corpus, prepare

WriteFolder = Callable[[Path, Mapping[str, int]], Path]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOEBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def write_folder() -> WriteFolder:
    """Writes DIR/<domain>/{train,valid}.jsonl, with a number of training documents per domain."""

    def write(folder: Path, documents: Mapping[str, int]) -> Path:
        for domain, count in documents.items():
            rng = np.random.default_rng(len(domain) + ord(domain[0]))
            (folder / domain).mkdir(parents=True)
            for split, number in (("train", count), ("valid", 12)):
                lines = []
                for i in range(number):
                    words = rng.integers(1000, size=rng.integers(20, 60))
                    text = f"{domain} {split} {i}: " + " ".join(map(str, words))
                    lines.append(json.dumps({"text": text}) + "\n")
                (folder / domain / f"{split}.jsonl").write_text("".join(lines))
        return folder

    return write


@pytest.fixture
def folder(tmp_path: Path, write_folder: WriteFolder) -> Path:
    return write_folder(tmp_path / "text", {"alpha": 40, "beta": 25, "gamma": 60})


@pytest.fixture
def config(folder: Path) -> DataConfig:
    return DataConfig(source="folder", path=str(folder))


@pytest.fixture
def corpus(config: DataConfig) -> Corpus:
    return prepare(config)

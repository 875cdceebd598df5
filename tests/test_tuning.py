"""The search for values: ranges, tuning seeds, resuming, failures. Nothing is trained here.

Where Optuna is not installed, a stand-in with the part of its interface that is used draws values.
"""

import importlib.util
import os
import random
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moebench import tuning
from moebench.config.compose import Composer
from moebench.errors import ConfigError, MoebenchError, RecordError, Stopped, TrainingError
from moebench.tuning import Interval, Outcome, Search, best
from tests.processes import moebench

INSTALLED = importlib.util.find_spec("optuna") is not None


class State:
    """The state of a stand-in's trial."""

    FAIL = "fail"

    def __init__(self, name: str) -> None:
        self.name = name

    def is_finished(self) -> bool:
        return self.name != "running"


class Trial:
    def __init__(self, number: int) -> None:
        self.number, self.state = number, State("running")
        self.value: float | None = None
        self.user_attrs: dict[str, str] = {}

    def suggest_float(self, key: str, low: float, high: float, log: bool) -> float:
        return random.Random(self.number).uniform(low, high)

    def suggest_int(self, key: str, low: int, high: int, log: bool) -> int:
        return random.Random(self.number).randint(low, high)

    def set_user_attr(self, key: str, value: str) -> None:
        self.user_attrs[key] = value


class Study:
    def __init__(self) -> None:
        self.trials: list[Trial] = []

    def get_trials(self) -> list[Trial]:
        return [*self.trials]

    def ask(self) -> Trial:
        self.trials.append(Trial(len(self.trials)))
        return self.trials[-1]

    def tell(self, number: int, value: float | None = None, state: str | None = None) -> None:
        assert self.trials[number].value is None
        self.trials[number].value = value
        self.trials[number].state = State(state or "complete")


def stand_in() -> Any:
    kept: dict[str, Study] = {}

    def create_study(storage: Any, study_name: str, **_: Any) -> Study:
        return kept.setdefault(storage.path + study_name, Study())

    return SimpleNamespace(
        logging=SimpleNamespace(set_verbosity=lambda _: None, ERROR=0),
        storages=SimpleNamespace(
            journal=SimpleNamespace(JournalFileBackend=str),
            JournalStorage=lambda path: SimpleNamespace(path=path, get_all_studies=list),
        ),
        create_study=create_study,
        samplers=SimpleNamespace(TPESampler=lambda seed: None),
        trial=SimpleNamespace(TrialState=State),
    )


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    if not INSTALLED:
        monkeypatch.setitem(sys.modules, "optuna", stand_in())


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, int, Path]]:
    """(optim.lr, seed, directory) of the runs that a search asked for."""
    runs: list[tuple[float, int, Path]] = []

    def train(treatment: Any, corpus: Any, folder: Path, **named: Any) -> Any:
        config = treatment.config
        assert named["resume"] is True
        runs.append((config.optim.lr, config.seed, folder))
        if len(runs) == 7:
            raise Stopped(folder, 1, 15)
        if config.optim.lr > 0.05:
            raise TrainingError("step 3: the loss is not finite")
        loss = abs(config.optim.lr - 0.02) + config.seed / 1e6
        return SimpleNamespace(summary=lambda: {"tune/nats": loss, "valid/nats": -loss})

    monkeypatch.setattr(tuning, "run_experiment", train)
    return runs


@contextmanager
def follow(name: str, steps: int) -> Any:
    yield None


def search(tmp_path: Path, text_folder: Path, *words: str, seeds: int = 1) -> Search:
    fixed = ["model=smoke", "data=folder", f"data.path={text_folder}"]
    return Search(Composer(), [*fixed, *words], seeds, tmp_path)


def test_intervals() -> None:
    assert Interval.read("scope=micro") is None
    assert Interval.read("data.path=a..b") is None
    assert Interval.read("optim.lr=1e-4..0.01") == Interval("optim.lr", 1e-4, 0.01, True, False)
    assert Interval.read("optim.lr=0.1..0.5") == Interval("optim.lr", 0.1, 0.5, False, False)
    assert Interval.read("optim.lr=0.1..0.5:log") == Interval("optim.lr", 0.1, 0.5, True, False)
    assert Interval.read("optim.lr=0.1..9:linear") == Interval("optim.lr", 0.1, 9, False, False)
    top_k = Interval.read("model.top_k=1..8")
    assert top_k == Interval("model.top_k", 1, 8, False, True)
    assert top_k is not None
    assert top_k.word(3.0) == "model.top_k=3"
    assert Interval("optim.lr", 0, 1, False, False).word(0.0123456) == "optim.lr=0.01235"
    with pytest.raises(ConfigError, match="holds no values; write the smaller number first"):
        Interval.read("optim.lr=2..1")
    with pytest.raises(ConfigError, match="must begin above 0, or end with :linear"):
        Interval.read("method.options.rate=0..1:log")


def test_a_search_goes_on_where_it_stopped(
    tmp_path: Path, text_folder: Path, trained: list[tuple[float, int, Path]]
) -> None:
    first = search(tmp_path, text_folder, "optim.lr=0.01..0.04", seeds=2)
    done = list(first.run(2, follow))
    assert [run[1] for run in trained] == [1000, 1001] * 2
    assert {folder for _, _, folder in trained} == {tmp_path / "tuning"}
    assert done[0].words == f"optim.lr={trained[0][0]:.4g}"
    assert done[0].value == pytest.approx(abs(trained[0][0] - 0.02) + 1000.5 / 1e6)
    seen = []
    with pytest.raises(Stopped):
        seen.extend(first.run(4, follow))  # at the first run of the fourth trial
    assert len(seen) == 2 + 1
    again = search(tmp_path, text_folder, "optim.lr=0.01..0.04", seeds=2)
    after = list(again.run(4, follow))
    assert after[:2] == done
    assert [outcome.number for outcome in after] == [0, 1, 2, 3]
    assert trained[6][:2] == trained[7][:2]  # with the values that it had chosen
    assert best(after).value == min(outcome.value or 9 for outcome in after)
    other = search(tmp_path, text_folder, "optim.lr=0.01..0.05", seeds=2)
    assert other.journal != again.journal


@pytest.mark.parametrize("words", ["data=huggingface", "optim.lr=x", "optim.lr=0.5 seed=1"])
def test_a_journal_of_another_search_is_refused(
    tmp_path: Path, text_folder: Path, trained: list[Any], words: str
) -> None:
    made = search(tmp_path, text_folder, "optim.lr=0.01..0.04")
    study, _, _ = made._known()
    study.ask().set_user_attr("words", words)
    with pytest.raises(ConfigError, match=r"trial 0 is of no search of these ranges\); remove it"):
        next(made.run(1, follow))
    assert not trained


def test_a_journal_that_is_none_is_refused(tmp_path: Path, text_folder: Path) -> None:
    made = search(tmp_path, text_folder, "optim.lr=0.01..0.04")
    made.folder.mkdir()
    for put, why in (
        (os.mkfifo, "is not a regular file"),
        (lambda path: path.write_text("[]\n"), "line 1 is not a JSON object"),
        (lambda path: (path.touch(), os.truncate(path, 8 << 30)), "is larger than 256 MiB"),
    ):
        put(made.journal)
        with pytest.raises(ConfigError, match=rf"journal: cannot be used \({why}\); remove it"):
            made._known()
        made.journal.unlink()
    made.journal.write_text('{"torn')
    made._known()
    assert not made.journal.read_bytes().startswith(b'{"torn'), "the next line would follow it"
    made.folder.rename(tmp_path / "outside")
    made.folder.symlink_to(tmp_path / "outside")
    with pytest.raises(RecordError, match=r"tuning: is a link to .*/outside, where nothing may"):
        made._known()


def test_trials_that_fail(
    tmp_path: Path, text_folder: Path, trained: list[tuple[float, int, Path]]
) -> None:
    outcomes = []
    with pytest.raises(MoebenchError, match=r"none of 2 trials .* the loss is not finite"):
        outcomes.extend(search(tmp_path, text_folder, "optim.lr=0.06..0.07").run(2, follow))
    assert [outcome.value for outcome in outcomes] == [None, None]
    assert best([Outcome(0, "a", None), Outcome(1, "b", 2.0), Outcome(2, "c", 2.0)]).words == "b"


def test_words_that_cannot_be_searched(
    tmp_path: Path, text_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words, line in (
        (["optim.lr=-1..1:linear"], "optim.lr=-1.0: must be above 0"),
        (["optim.rl=1..2"], "optim.rl"),
        (["seed=3", "optim.lr=1..2"], "seed=3: is not searched; tuning takes seeds from 1000 on"),
        (["seed=1..3"], "seed=1..3: is not searched"),
        ([], "names no range; write one as in"),
    ):
        with pytest.raises(ConfigError, match=line):
            search(tmp_path, text_folder, *words)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"run pip install 'moebench\[tune\]'"):
        search(tmp_path, text_folder, "optim.lr=1..2")


def test_command_names_the_extra(tmp_path: Path) -> None:
    if INSTALLED:
        pytest.skip("Optuna is installed")
    process = moebench("tune", "optim.lr=1..2", "--trials", "1", cwd=tmp_path)
    _, errors = process.communicate(60)
    assert process.returncode == 2
    assert errors.startswith("error: moebench tune: needs the Optuna library")

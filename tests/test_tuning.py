"""The search for values: ranges, tuning seeds, resuming, failures. Nothing is trained here."""

import json
import math
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moebench import tuning
from moebench.config.compose import Composer
from moebench.config.interval import Interval
from moebench.errors import (
    ConfigError,
    LockedError,
    MoebenchError,
    RecordError,
    Stopped,
    TrainingError,
)
from moebench.lease import is_held
from moebench.registration import TUNING
from moebench.searches import Outcome, Space, best
from moebench.tuning import Search, spread
from tests.leases import elsewhere
from tests.processes import moebench
from tests.searching import INSTALLED, stand_in


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
            raise Stopped(folder, 1, signal.SIGTERM)
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


def found(search: Space) -> tuple[list[Outcome], int]:
    """What the file of a search holds."""
    kept = search.found()
    assert kept is not None
    return list(kept.trials), kept.asked


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
    assert [run[1] for run in trained] == [TUNING, TUNING + 1] * 2
    assert {folder for _, _, folder in trained} == {tmp_path / "tuning"}
    assert done[0].words == f"optim.lr={trained[0][0]:.4g}"
    assert done[0].value == pytest.approx(abs(trained[0][0] - 0.02) + 1000.5 / 1e6)
    seen = []
    with pytest.raises(Stopped, match=r"at step 1; the same search continues$"):
        seen.extend(first.run(4, follow))  # at the first run of the fourth trial
    assert len(seen) == 2 + 1
    again = search(tmp_path, text_folder, "optim.lr=0.01..0.04", seeds=2)
    after = list(again.run(4, follow))
    assert after[:2] == done
    assert [outcome.number for outcome in after] == [0, 1, 2, 3]
    assert trained[6][:2] == trained[7][:2]  # with the values that it had chosen
    first = best(after)
    assert first is not None
    assert first.value == min(outcome.value or 9 for outcome in after)
    assert found(again) == (after, 4)
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
        next(made.run(1, follow))
    assert not (tmp_path / "outside" / ".locks").exists()


def test_one_process_makes_the_trials_of_a_search(
    tmp_path: Path,
    text_folder: Path,
    trained: list[tuple[float, int, Path]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = search(tmp_path, text_folder, "optim.lr=0.01..0.04")
    lock = made.folder / ".locks" / f"{made.name}.journal.lock"
    with (
        elsewhere(lock),
        pytest.raises(
            LockedError,
            match=r"\.journal: another process is making its trials \(process \d+ on other\); wait",
        ),
    ):
        next(made.run(1, follow))
    assert not trained
    train = tuning.run_experiment
    held = []

    def watched(*words: Any, **named: Any) -> Any:
        held.append(is_held(lock))
        return train(*words, **named)

    monkeypatch.setattr(tuning, "run_experiment", watched)
    list(made.run(1, follow))
    assert held == [True]
    assert not is_held(lock)


def test_a_lock_of_a_killed_optuna_is_not_awaited(
    tmp_path: Path,
    text_folder: Path,
    trained: list[tuple[float, int, Path]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    made = search(Path("runs"), text_folder, "optim.lr=0.01..0.04")
    list(made.run(1, follow))
    Path(f"{made.journal}.lock").symlink_to(made.journal)  # as Optuna links it: it dangles
    assert len(list(made.run(2, follow))) == 2


def test_trials_that_fail(
    tmp_path: Path, text_folder: Path, trained: list[tuple[float, int, Path]]
) -> None:
    outcomes = []
    with pytest.raises(MoebenchError, match=r"none of 2 trials .* the loss is not finite"):
        outcomes.extend(search(tmp_path, text_folder, "optim.lr=0.06..0.07").run(2, follow))
    assert [outcome.value for outcome in outcomes] == [None, None]
    equal = [Outcome(0, "a", None), Outcome(1, "b", 2.0), Outcome(2, "c", 2.0)]
    assert best(equal) == equal[1]
    assert best(equal[:1]) is None


def test_the_first_trials_cover_the_ranges_and_do_not_depend_on_interruptions(
    tmp_path: Path, text_folder: Path, trained: list[tuple[float, int, Path]]
) -> None:
    quarters = [[int(4 * share) for share in point] for point in spread(2)[:4]]
    assert [sorted(axis) for axis in zip(*quarters, strict=True)] == [[0, 1, 2, 3]] * 2
    assert [point[-1:] for point in spread(2)] == spread(1)
    words = ["optim.lr=0.001..0.01", "loss.balance=0.001..1"]
    at_once = [trial.words for trial in search(tmp_path / "a", text_folder, *words).run(3, follow)]
    parts: list[Outcome] = []
    for number in range(3):
        parts = list(search(tmp_path / "b", text_folder, *words).run(number + 1, follow))
    assert [trial.words for trial in parts] == at_once
    shares = [math.log10(float(words.split()[0].partition("=")[2]) / 0.001) for words in at_once]
    assert shares == pytest.approx([point[0] for point in spread(2)[:3]], abs=1e-3)


def test_a_trial_that_was_killed_before_it_had_values_is_asked_again(
    tmp_path: Path, text_folder: Path, trained: list[tuple[float, int, Path]]
) -> None:
    at_once = list(search(tmp_path / "a", text_folder, "optim.lr=0.01..0.04").run(2, follow))
    made = search(tmp_path / "b", text_folder, "optim.lr=0.01..0.04")
    study, _, _ = made._known()
    made._ask(study, 0)
    parts = list(made.run(2, follow))
    assert [trial.words for trial in parts] == [trial.words for trial in at_once]


def test_a_file_of_trials_that_was_changed_is_refused(
    tmp_path: Path, text_folder: Path, trained: list[tuple[float, int, Path]]
) -> None:
    made = search(tmp_path, text_folder, "optim.lr=0.01..0.04")
    assert made.found() is None
    list(made.run(1, follow))
    journal = made.journal.read_bytes() if made.journal.exists() else b""
    made.journal.write_text("another")
    with pytest.raises(ConfigError, match=r"journal beside it has changed since.*writes it again"):
        made.found()
    made.journal.write_bytes(journal)
    content = json.loads(made.path.read_text())
    made.path.write_text(json.dumps({**content, "trials": content["trials"] * 2}))
    with pytest.raises(ConfigError, match="trial 0 is there twice"):
        made.found()
    content["trials"][0]["words"] = "optim.lr=0.02 data=huggingface"
    made.path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="trial 0 is of no search of these ranges"):
        made.found()
    made.path.write_text('{"trials": [{"number": -1}]}')
    with pytest.raises(ConfigError, match="asked is missing"):
        made.found()


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

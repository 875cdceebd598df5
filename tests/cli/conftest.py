"""Fixtures: the command line called in this process, a small run, and one without training."""

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moebench import cli
from tests.calls import STOPPING, Call, Result
from tests.cli import rules


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Call]:
    """Call the command line in this process, in a directory that is empty at first."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "80")
    before = {number: signal.getsignal(number) for number in STOPPING}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored

    def made(*words: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["moebench", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert isinstance(stop.value.code, int)
        out, err = capsys.readouterr()
        return Result(stop.value.code, out, err)

    yield made
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def small(text_folder: Path) -> list[str]:
    """Overrides that make a run take a second."""
    return [
        *("model=smoke", "train.steps=6", "global_bsz=8", "seq_len=32", "data.valid_sequences=4"),
        *("data=folder", f"data.path={text_folder}", "run.device=cpu", "run.threads=1"),
    ]


@pytest.fixture
def ruled(small: list[str]) -> list[str]:
    """What is typed for a study of 12 seeds that ends by rule."""
    return [*rules.STUDY, *small, *rules.RULE]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands in for training: `effect` of global, in deviations; and the seeds of each call."""
    seen: dict[str, Any] = {"effect": -40.0, "seeds": [], "fails": False, "trigram": 100.0}

    def follow(launcher: Any, each: Callable[[], None] | None = None) -> None:
        seen["seeds"].append(sorted({job.seed for job in launcher.waiting}))
        for job in launcher.waiting:
            rules.write(launcher.runs_dir, job, seen["effect"], seen["trigram"])
        if seen["fails"]:
            launcher.failed.append((launcher.waiting[0], "it failed"))

    monkeypatch.setattr("moebench.cli.deciding.follow", follow)
    monkeypatch.setattr("moebench.study.child.warm", lambda: None)
    monkeypatch.setattr("os.fsync", lambda _: None)
    return seen

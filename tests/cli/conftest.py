"""Fixtures: the command line called in this process, and settings for a small run."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from moebench import cli
from tests.calls import STOPPING, Call, Result


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

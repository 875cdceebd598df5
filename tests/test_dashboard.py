"""Which views the dashboard makes, and which records it leaves alone."""

from collections.abc import Callable
from pathlib import Path

import pytest

from moebench.dashboard import make_views, records_to_view
from moebench.errors import RecordError
from moebench.records import Record
from moebench.tensorboard import View
from tests.leases import elsewhere

Begin = Callable[..., Record]


@pytest.fixture
def begin(tmp_path: Path) -> Begin:
    """Makes the record of a run."""

    def made(name: str, done: bool = True) -> Record:
        record = Record(tmp_path / name)
        record.begin("train: {steps: 1}\n", {"arm": "micro", "start": "2026-01-01T00:00:00"})
        record.append({"step": 0, "train/loss": 5.0})
        if done:
            record.seal({"status": "done"})
        return record

    return made


def view(record: Record) -> list[Path]:
    return list(record.path.glob("tensorboard/*"))


def test_a_finished_run_that_lost_its_view_gets_it_back(begin: Begin, tmp_path: Path) -> None:
    lost, kept, unfinished = begin("a"), begin("b"), begin("c", done=False)
    View(kept).close()
    lacking = records_to_view(tmp_path)
    assert [record.name for record in lacking] == ["a"]
    before = view(kept)
    assert list(make_views(lacking)) == [""]
    assert (len(view(lost)), view(kept), view(unfinished)) == (1, before, [])
    assert records_to_view(tmp_path) == []


def test_all_views_are_made_again_but_those_that_cannot_be(begin: Begin, tmp_path: Path) -> None:
    names = ["broken", "done", "other", "trained", "unfinished"]
    broken, done, other, trained, unfinished = (begin(name, name == "done") for name in names)
    (broken.path / "metrics.jsonl").write_text("[]\n")
    (other.path / "manifest.json").write_text('{"schema_version": 2}')
    for record in (done, trained):
        View(record).close()
    before = view(done)
    lacking = records_to_view(tmp_path, rebuild_all=True)
    assert [record.name for record in lacking] == names
    with elsewhere(tmp_path / ".locks" / "trained.lock"):
        kept = view(trained)
        troubles = dict(zip(names, make_views(lacking), strict=True))
    assert troubles["broken"].endswith(
        "metrics.jsonl:1: is not a row of metrics (is not a JSON object); the record is damaged"
    )
    assert "is a record of version 2, this moebench reads version 1" in troubles["other"]
    assert "another process is training it" in troubles["trained"]
    assert (troubles["done"], troubles["unfinished"]) == ("", "")
    assert view(trained) == kept
    assert view(done) != before
    assert (len(view(done)), len(view(unfinished))) == (1, 1)


def test_a_view_that_cannot_be_written_is_named(begin: Begin) -> None:
    record = begin("a")
    (record.path / "tensorboard").touch()
    assert list(make_views([record])) == [
        f"{record.path}: its view cannot be written (File exists)"
    ]


def test_without_runs_there_is_nothing_to_show(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nope"):
        with pytest.raises(RecordError, match=f"^{path}: contains no runs; moebench train "):
            records_to_view(path)

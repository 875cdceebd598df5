"""Damage to an unfinished run: what is named, and from where a run continues."""

import errno
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moebench.config.identity import run_name
from moebench.data.corpus import Corpus
from moebench.disk import read_json, write_json
from moebench.errors import RecordError, Stopped
from moebench.experiment import run_experiment
from moebench.protection import unfinished_damage
from moebench.records import Record
from moebench.train.loop import Event
from tests.experiment.conftest import Compose
from tests.results import results, stopped


def test_a_damaged_checkpoint_is_named(compose: Compose, corpus: Corpus, tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if event.step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped):
        run_experiment(compose(), corpus, tmp_path, on_event=stop)
    (path,) = tmp_path.glob("*/checkpoints/step-1/model.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RecordError, match=r"model\.safetensors: does not match its checksum"):
        run_experiment(compose(), corpus, tmp_path, resume=True)


def test_a_run_does_not_train_into_a_record_with_a_link_out_of_it(
    compose: Compose, corpus: Corpus, tmp_path: Path
) -> None:
    config, outside = compose(), tmp_path / "outside"
    outside.mkdir()
    link = tmp_path / run_name(config, corpus.content_hash) / "checkpoints"
    link.parent.mkdir()
    link.symlink_to(outside)
    with pytest.raises(RecordError, match="checkpoints: is a link out of the record"):
        run_experiment(config, corpus, tmp_path)
    assert not list(outside.iterdir())


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def lengthen(path: Path) -> None:
    """To 8 TiB, which take no room, and hours to read."""
    os.truncate(path, 8 << 40)


def append_row(record: Record, row: str) -> None:
    with open(record.path / "metrics.jsonl", "a") as file:
        file.write(row)


def test_a_record_that_is_a_link_is_not_replaced(
    compose: Compose, corpus: Corpus, tmp_path: Path
) -> None:
    config, outside = compose(), tmp_path / "outside"
    record = Record(tmp_path / "runs" / run_name(config, corpus.content_hash))
    Record(outside).begin("", {})
    record.path.parent.mkdir()
    record.path.symlink_to(outside)
    with pytest.raises(RecordError, match=r"is a link to .*/outside, where nothing may be written"):
        run_experiment(config, corpus, record.path.parent, force=True)
    assert record.path.is_symlink()
    assert Record(outside).exists()


DAMAGE: list[Callable[[Record], Any]] = [  # to the checkpoint of step 10, or before it
    lambda record: flip(record.path / "checkpoints/step-10/model.safetensors", -1),
    lambda record: flip(record.path / "checkpoints/step-10/state.json", 20),
    lambda record: flip(record.path / "metrics.jsonl", -3),
    lambda record: (record.path / "routing/step-10.npz").unlink(),
    lambda record: (record.path / "checkpoints/step-10/record.json").unlink(),
    lambda record: (record.path / "checkpoints/step-10/state.json").unlink(),
    lambda record: flip(record.path / "selections/train.npy", -1),
    lambda record: os.truncate(record.path / "routing/step-10.npz", 8 << 40),
    lambda record: os.truncate(record.path / "checkpoints/step-10/load.safetensors", 8 << 40),
]


def test_an_unfinished_run_is_protected_and_falls_back(
    compose: Compose, corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Checkpoints of steps 8 and 10, rows up to step 10."""
    recorded = compose("run.record_selections=true")
    whole = run_experiment(recorded, corpus, tmp_path / "whole")
    stopped(recorded, corpus, tmp_path / "cut", step=10)
    cut = Record(tmp_path / "cut" / whole.name)
    assert unfinished_damage(cut) == []
    for path in [path for path in cut.path.rglob("*") if path.is_file()]:
        name = path.relative_to(cut.path).as_posix()
        if name.startswith("tensorboard"):
            continue
        content = path.read_bytes()
        flip(path, len(content) // 2)
        assert unfinished_damage(cut), f"a flip in {name} is not found"
        path.unlink()
        assert unfinished_damage(cut) or name == "status.json", f"{name} is not missed"
        path.write_bytes(content)
    assert unfinished_damage(cut) == []

    def damaged(name: str, damage: Callable[[Record], Any]) -> Record:
        record = Record(tmp_path / name / cut.name)
        shutil.copytree(cut.path, record.path)
        damage(record)
        return record

    for number, damage in enumerate(DAMAGE):
        record = damaged(f"back-{number}", damage)
        run_experiment(compose(), corpus, record.path.parent, resume=True)
        assert "continuing from the checkpoint of step 8 instead" in capsys.readouterr().err
        assert results(record) == results(whole)
    record = damaged("late", lambda record: append_row(record, "{damaged}\n"))
    run_experiment(compose(), corpus, record.path.parent, resume=True)
    assert "is not a row of metrics" in (said := capsys.readouterr().err)
    assert "it came after the last checkpoint, and its step is trained again" in said
    assert results(record)["rows"] == results(whole)["rows"]
    record = damaged("status", lambda record: flip(record.path / "status.json", 40))
    run_experiment(compose(), corpus, record.path.parent, resume=True)
    assert "the time of earlier sessions is not counted" in capsys.readouterr().err
    assert results(record)["rows"] == results(whole)["rows"]
    record = damaged("early", lambda record: flip(record.path / "metrics.jsonl", 12))
    with pytest.raises(
        RecordError, match=r"metrics\.jsonl: a row up to step 10 was changed or lost"
    ):
        run_experiment(compose(), corpus, record.path.parent, resume=True)
    assert len(list(record.path.glob("checkpoints/*"))) == 2, "nothing is removed"


def test_nothing_but_the_status_is_written_after_the_seal(
    compose: Compose,
    corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A run that dies, or whose disk fails, after the seal is done: its view is whole by then."""
    views: list[bytes] = []
    seal, set_status = Record.seal, Record.set_status

    def view(record: Record) -> bytes:
        [path] = (record.path / "tensorboard").iterdir()
        return path.read_bytes()

    def sealing(record: Record, *more: Any) -> Any:
        views.append(view(record))
        return seal(record, *more)

    def failing(record: Record, state: str, **more: Any) -> None:
        if state == "done":
            raise OSError(errno.EIO, os.strerror(errno.EIO), "status.json")
        set_status(record, state, **more)

    monkeypatch.setattr(Record, "seal", sealing)
    monkeypatch.setattr(Record, "set_status", failing)
    record = run_experiment(compose(), corpus, tmp_path)
    record.refuse_changes()
    assert views == [view(record)]
    assert b"Final/valid/ppl" in views[0]
    assert "status.json: cannot be written (Input/output error); it is done" in (
        capsys.readouterr().err
    )


def test_a_run_whose_rows_were_lost_is_not_sealed(
    compose: Compose, corpus: Corpus, tmp_path: Path
) -> None:
    record = run_experiment(compose(), corpus, tmp_path)
    (record.path / "summary.json").unlink()
    (record.path / "metrics.jsonl").write_text("")
    with pytest.raises(
        RecordError, match=r"metrics\.jsonl: a row up to step 12 was changed or lost"
    ):
        run_experiment(compose(), corpus, tmp_path, resume=True)
    for protection in record.path.glob("checkpoints/*/record.json"):
        protection.unlink()
    with pytest.raises(RecordError, match=r"checkpoints/step-12/record\.json: is missing"):
        run_experiment(compose(), corpus, tmp_path, resume=True)
    for state in record.path.glob("checkpoints/*/state.json"):  # as an earlier version wrote it
        write_json(state, {k: v for k, v in read_json(state).items() if k != "protected"})
    with pytest.raises(RecordError, match=r"metrics\.jsonl: lacks rows of this run; --force"):
        run_experiment(compose(), corpus, tmp_path, resume=True)
    assert not record.is_done()

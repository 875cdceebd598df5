"""A sealed record: what is changed, added or lost is found, and what may change is not sealed."""

from pathlib import Path
from typing import Any

import pytest

from moebench.disk import sha256, write_json
from moebench.errors import RecordError
from moebench.seals import digest_of
from tests.sealed_record import files, sealed


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    record = sealed(tmp_path / "run")
    for path in files(record):
        name = path.relative_to(record.path).as_posix()
        if name.startswith("tensorboard"):
            continue
        content = path.read_bytes()
        for position in range(0, len(content), max(1, len(content) // 60)):
            flipped = bytearray(content)
            flipped[position] ^= 1
            path.write_bytes(flipped)
            damage = record.damage()
            assert [line.partition(":")[0].split(".json")[0] for line in damage] == [
                name.split(".json")[0]
            ], (name, position)
        path.write_bytes(content)
        assert record.damage() == []


def test_what_is_added_or_lost_is_found(tmp_path: Path) -> None:
    record = sealed(tmp_path / "run")
    for path in files(record):
        name = path.relative_to(record.path).as_posix()
        if name.startswith(("status.json", "summary.json", "tensorboard")):
            continue
        content = path.read_bytes()
        path.unlink()
        assert record.damage() == [f"{name}: is missing"]
        path.write_bytes(content)
    (record.path / "routing" / "step-9.npz").write_bytes(b"")
    assert record.damage() == ["routing/step-9.npz: was added"]


def test_what_may_change_after_a_run_is_not_sealed(tmp_path: Path) -> None:
    record = sealed(tmp_path / "run")
    record.set_status("done", step=4, note="later")
    (record.path / "tensorboard" / "events").unlink()
    record.save_task("blimp", {"accuracy": 0.5})
    assert record.damage() == []


def test_a_task_seals_itself(tmp_path: Path) -> None:
    record = sealed(tmp_path / "run")
    made = record.save_task("blimp", {"accuracy": 0.5})
    assert record.tasks() == {"blimp": made}
    for changed in ({**made, "accuracy": 0.9}, {"accuracy": 0.5}):
        write_json(record.path / "tasks" / "blimp.json", changed)
        assert record.damage() == ["tasks/blimp.json: was changed"]


@pytest.mark.parametrize("name", ["tasks", "routing/step-4.npz", "metrics.jsonl"])
def test_nothing_is_written_through_a_link_out_of_a_record(tmp_path: Path, name: str) -> None:
    record = sealed(tmp_path / "run")
    (record.path / "inside").symlink_to("checkpoints")  # harmless
    record.check_links()
    outside, link = tmp_path / "run-of-mine", record.path / name
    outside.mkdir()
    link.unlink(missing_ok=True)
    link.symlink_to(outside)
    with pytest.raises(RecordError, match=f"{name}: is a link out of the record"):
        record.save_task("blimp", {"accuracy": 0.5})
    assert not list(outside.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        {"valid/nats": 0.1},
        {"files": {}},
        {"sha256": "0" * 64},
        {"extra": 1},
    ],
)
def test_a_summary_that_was_written_again_is_found(tmp_path: Path, change: dict[str, Any]) -> None:
    record = sealed(tmp_path / "run")
    write_json(record.path / "summary.json", record.summary() | change)
    assert record.damage() == ["summary.json: was changed"]


def test_a_seal_reaches_no_file_outside_its_record(tmp_path: Path) -> None:
    record = sealed(tmp_path / "run")
    secret = tmp_path / "secret"
    secret.write_text("s")
    forged = record.summary()
    forged["files"]["../secret"] = sha256(secret)
    forged["sha256"] = digest_of(forged)
    write_json(record.path / "summary.json", forged)
    assert record.damage() == ["summary.json: is missing or was changed"]
    with pytest.raises(RecordError, match="a key of files is not the name of a file of a record"):
        record.summary()

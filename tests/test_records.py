"""Records survive crashes, and tell when they were damaged or never were records."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moebench import __version__
from moebench.cli.verify import find_sealed
from moebench.disk import write_json
from moebench.errors import RecordError
from moebench.records import Record, find_records, printable
from tests.sealed_record import CONFIG, sealed


def test_a_record_reads_as_it_was_written(tmp_path: Path) -> None:
    record = sealed(tmp_path / "run")
    assert record.config() == {"train.steps": 4, "seed": 0}
    assert record.manifest() == {"schema_version": 1, "arm": "micro", "seed": 0}
    assert [row["step"] for row in record.rows()] == [0, 1, 2, 3, 4]
    assert record.rows()[1]["train/loss"] == 1 / 4
    assert record.routing_steps() == [0]
    assert record.routing(0)["counts"].tolist() == [[[0, 1, 2], [3, 4, 5]]]
    assert record.summary()["valid/nats"] == 1 / 3
    assert record.summary()["empty"] is None
    assert record.status()["state"] == "done"
    assert record.status()["pid"] == os.getpid()
    assert record.is_done()
    assert record.damage() == []


# Crashes


def test_what_a_killed_process_left_aside_goes_when_the_run_goes_on(tmp_path: Path) -> None:
    record = sealed(tmp_path / "run")
    (record.path / ".status.json.123.tmp").write_text("{")
    aside = record.path / "checkpoints" / ".step-4.123.tmp"
    aside.mkdir()
    (aside / "model.safetensors").write_bytes(b"half")
    assert record.damage() == [], "what is hidden is no part of a record"
    record.begin(CONFIG, {"arm": "micro", "seed": 0})
    assert not [path for path in record.path.rglob("*") if path.name.startswith(".")]


def test_a_record_that_is_found_has_its_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    monkeypatch.setattr("moebench.disk.os.replace", lambda _, path: written.append(path.name))
    Record(tmp_path / "run").begin(CONFIG, {})
    assert written == ["manifest.json", "config.yaml"]


@pytest.mark.parametrize("torn", ['{"step": 5, "train/lo', '{"step": 5}', "{", "\x00" * 40])
def test_one_torn_last_line_is_left_out(tmp_path: Path, torn: str) -> None:
    record = sealed(tmp_path / "run")
    with open(record.path / "metrics.jsonl", "a") as file:
        file.write(torn)
    assert len(record.rows()) == 5


@pytest.mark.parametrize(
    "line", ["{", "", "5", "[1]", "null", '{"a": 1}', '{"step": "1"}', '{"step": true}', "\xff"]
)
@pytest.mark.parametrize("number", [1, 3, 6])
def test_any_other_broken_line_is_damage(tmp_path: Path, line: str, number: int) -> None:
    record = sealed(tmp_path / "run")
    path = record.path / "metrics.jsonl"
    lines = path.read_bytes().splitlines()
    lines.insert(number - 1, line.encode("latin-1"))
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(RecordError, match=f"metrics.jsonl:{number}: is not a row of metrics"):
        record.rows()


@pytest.mark.parametrize(
    ("step", "kept"), [(-1, []), (0, [0]), (2, [0, 1, 2]), (9, [0, 1, 2, 3, 4])]
)
def test_a_run_is_cut_where_it_goes_on(tmp_path: Path, step: int, kept: list[int]) -> None:
    record = sealed(tmp_path / "run")
    for evaluated in (2, 4):
        record.save_routing(evaluated, {"counts": np.zeros((1, 1, 1), int)})
    before = record.rows()
    with open(record.path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 5, "tor')
    record.cut(step)
    assert [row["step"] for row in record.rows()] == kept
    assert record.rows() == before[: len(kept)], "to the last bit"
    assert record.routing_steps() == [each for each in (0, 2, 4) if each <= step]
    record.append({"step": 99})
    assert record.rows()[-1] == {"step": 99}


def test_a_finished_run_of_which_any_file_was_changed_is_not_skipped(tmp_path: Path) -> None:
    record = sealed(tmp_path / "run")
    record.refuse_changes()
    for name in record.summary()["files"]:
        content = (record.path / name).read_bytes()
        (record.path / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(RecordError, match=rf"{name}: was changed after the run; restore it"):
            record.refuse_changes()
        (record.path / name).write_bytes(content)


def test_a_last_digit_that_gives_the_same_number_is_seen_where_results_are_shown(
    tmp_path: Path,
) -> None:
    record = sealed(tmp_path / "run")
    path = record.path / "summary.json"
    path.unlink()
    record.seal({"valid/nats": 0.1})
    record.refuse_changes()
    path.write_bytes(path.read_bytes().replace(b"0.1", b"0.10000000000000001"))
    assert record.summary()["valid/nats"] == 0.1
    with pytest.raises(RecordError, match=r"summary\.json: was changed"):
        record.refuse_changes()


@pytest.mark.parametrize("damage", [b"{torn}\n", b"\xff\n", b'{"no": 1}\n', b"a" * (17 << 20)])
def test_a_damaged_row_after_the_checkpoint_is_removed_and_said(
    tmp_path: Path, damage: bytes
) -> None:
    record = sealed(tmp_path / "run")
    path = record.path / "metrics.jsonl"
    kept = b"".join(path.read_bytes().splitlines(keepends=True)[:3])
    with open(path, "ab") as file:
        file.write(damage)
    whole = path.read_bytes()
    for until in (None, len(whole)):
        with pytest.raises(RecordError, match=r"metrics\.jsonl"):
            record.cut(2, until)
        assert path.read_bytes() == whole, "nothing is removed"
    assert "metrics.jsonl" in record.cut(2, len(kept))
    assert [row["step"] for row in record.rows()] == [0, 1, 2]


def test_a_run_without_metrics_can_be_cut(tmp_path: Path) -> None:
    record = Record(tmp_path / "run")
    record.begin(CONFIG, {})
    record.cut(0)
    assert not (record.path / "metrics.jsonl").exists()


def test_rows_hold_finite_numbers_only(tmp_path: Path) -> None:
    record = sealed(tmp_path / "run")
    nan, inf = float("nan"), float("-inf")
    record.append({"step": 5, "a/nan": nan, "a/inf": inf, "a/list": [1.0, nan]})
    assert record.rows()[-1] == {"step": 5, "a/list": [1.0, None]}


# Hostile and broken content

DEEP = "[" * 100_000
TEXTS = ["", "{", "5", "[]", "null", '"a"', DEEP, '{"a": ' * 50_000, "\x00", "NaN", "9" * 5000]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_a_file_that_is_no_object_is_named(tmp_path: Path, text: str) -> None:
    record = sealed(tmp_path / "run")
    for name, read in (
        ("manifest.json", record.manifest),
        ("status.json", record.status),
        ("summary.json", record.summary),
    ):
        path = record.path / name
        path.write_text(text)
        with pytest.raises(RecordError, match=f"^{path}: (is|holds) .*; the record is damaged"):
            read()


@pytest.mark.parametrize(
    "content", [{}, {"state": "gone", "step": 0}, {"state": "done"}, {"state": "done", "step": "1"}]
)
def test_a_status_says_a_state_and_a_step(tmp_path: Path, content: dict[str, Any]) -> None:
    record = sealed(tmp_path / "run")
    write_json(record.path / "status.json", content)
    with pytest.raises(RecordError, match=r"status\.json: st(ate|ep) is "):
        record.status()


def test_a_run_that_said_nothing_is_waiting(tmp_path: Path) -> None:
    assert Record(tmp_path / "run").status() == {"state": "waiting", "step": 0}


def test_a_record_of_another_version_is_named(tmp_path: Path) -> None:
    record = sealed(tmp_path / "run")
    write_json(record.path / "manifest.json", {"schema_version": 2})
    with pytest.raises(RecordError, match="is a record of version 2, this moebench reads version"):
        record.manifest()


@pytest.mark.parametrize(
    ("began", "installed", "named"),
    [
        ("2.13.0+cu130", "2.13.0", False),
        ("2.13.0+cpu", "2.13.0+cpu", False),
        ("2.13.0+cpu", "2.13.0+cu130", True),
        ("2.12.0+cu130", "2.13.0", True),
    ],
)
def test_the_package_of_pypi_does_not_name_its_build(
    began: str, installed: str, named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moebench.records.version", lambda _: installed)
    record = Record(tmp_path / "run")
    record.begin("seed: 0\n", {"moebench": __version__, "torch": began})
    assert record.other_version() == (f"torch {began}" if named else "")


BOMB = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{{', '.join(f'k{k}: *a{n - 1}' for k in range(9))}}}\n" for n in range(1, 9)
)
CONFIGS = {
    "tab": "\t",
    "list": "[1, 2]",
    "nothing": "",
    "scalar": "5",
    "open": "a: [",
    "tag": "a: !!python/object/apply:os.getcwd []",
    "date": "a: 2001-13-45",
    "deep": "[" * 1500,
    "bomb": BOMB,
    "unhashable": "? [a]\n: 1",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    record = sealed(tmp_path / "run")
    path = record.path / "config.yaml"
    path.write_text(CONFIGS[name])
    with pytest.raises(RecordError, match=f"^{path}: "):
        record.config()


def test_a_config_that_is_no_text_is_named(tmp_path: Path) -> None:
    record = sealed(tmp_path / "run")
    (record.path / "config.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecordError, match=r"config\.yaml: cannot be read"):
        record.config()


def test_only_routing_of_a_step_counts(tmp_path: Path) -> None:
    record = sealed(tmp_path / "run")
    for name in ("step-.npz", "step-x.npz", "step--1.npz", "step-3.tmp", "step-1-2.npz"):
        (record.path / "routing" / name).write_bytes(b"")
    assert record.routing_steps() == [0]


# Finding


def test_records_are_found_under_a_folder_and_at_their_own_path(tmp_path: Path) -> None:
    done = sealed(tmp_path / "b")
    begun = Record(tmp_path / "a")
    begun.begin(CONFIG, {})
    (tmp_path / "studies" / "x-1").mkdir(parents=True)
    assert [record.name for record in find_records(tmp_path)] == ["a", "b"]
    assert [record.name for record in find_records(begun.path)] == ["a"]
    assert find_records(tmp_path / "nothing") == find_records(tmp_path / "studies") == []
    assert [record.path for record in find_sealed(tmp_path)] == [done.path]
    assert [record.path for record in find_sealed(done.path)] == [done.path]
    assert find_sealed(begun.path) == find_sealed(tmp_path / "studies") == []
    with pytest.raises(RecordError, match=f"^{tmp_path / 'nothing'}: is not a directory"):
        find_sealed(tmp_path / "nothing")


def test_printable_keeps_text_and_drops_what_steers_a_terminal() -> None:
    assert printable("größe ✓ [red]") == "größe ✓ [red]"
    assert printable("a\x1b[31m\r\nb\u202e") == "a�[31m��b�"


def test_a_pipe_in_the_place_of_a_file_is_called_so(tmp_path: Path) -> None:
    record = Record(tmp_path / "run")
    record.path.mkdir()
    (record.path / "metrics.jsonl").write_text("")
    record.set_status("done", step=1, steps=1)
    record.seal({})
    (record.path / "metrics.jsonl").unlink()
    os.mkfifo(record.path / "metrics.jsonl")
    assert record.damage() == ["metrics.jsonl: is not a regular file"]
    with pytest.raises(RecordError, match=r"run/metrics\.jsonl: is not a regular file"):
        record.check_seal("metrics.jsonl")
    os.mkfifo(record.path / "config.yaml")
    assert record.exists()
    with pytest.raises(RecordError, match=r"cannot be read \(is not a regular file\)"):
        record.config()

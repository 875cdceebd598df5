"""`moebench evaluate`: results are printed, and stored with a seal."""

import json
from pathlib import Path

import pytest

from moebench.records import Record
from tests.calls import Call

PAIRS = (
    ("The cats sleep.", "The cats sleeps.", "agree_1", "agreement"),
    ("Who left?", "Left who then did?", "wh_1", "questions"),
)


@pytest.fixture
def blimp(tmp_path: Path) -> Path:
    """A directory with pairs in the format of BLiMP."""
    keys = ("sentence_good", "sentence_bad", "UID", "linguistics_term")
    lines = [json.dumps(dict(zip(keys, pair, strict=True))) for pair in PAIRS]
    folder = tmp_path / "pairs"
    folder.mkdir()
    (folder / "all.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def record(call: Call, small: list[str]) -> Record:
    result = call("train", "--json", *small, "seed=7")
    return Record(Path(json.loads(result.out)["run"]))


def test_results_are_sealed_and_verify_finds_a_change(
    record: Record, call: Call, blimp: Path
) -> None:
    result = call("evaluate", record.path, "--tasks", "blimp,cloze", "--blimp", blimp, "--json")
    assert result.code == 0
    found = json.loads(result.out)["tasks"][str(record.path)]
    assert found["cloze"]["all"]["chance"] == 0.25
    assert record.tasks() == {f"{task}-step-6": found[task] for task in ("blimp", "cloze")}
    assert call("verify", record.path).code == 0
    again = call("evaluate", record.path, "--tasks", "cloze")
    assert "accuracy" in again.out
    assert record.tasks()["cloze-step-6"] == found["cloze"], "equal, bit for bit"
    path = record.path / "tasks" / "blimp-step-6.json"
    path.write_text(path.read_text().replace('"n": 2', '"n": 3'))
    damaged = call("verify", record.path)
    assert damaged.code == 1
    assert "tasks/blimp-step-6.json: was changed" in damaged.out


def test_what_is_wrong_is_one_line(call: Call, record: Record) -> None:
    for words, wanted in {
        ("nowhere",): "is not a run",
        (record.path, "--tasks", "blmp"): "--tasks=blmp: no such task; there are blimp, cloze",
        (record.path, "--tasks", ""): "name some of blimp, cloze",
        (record.path, "--step", "7"): "--step=7: ",
        (record.path, "--tasks", "blimp"): "--blimp=blimp: holds no *.jsonl",
    }.items():
        result = call("evaluate", *words)
        assert (result.code, result.out) == (2, ""), words
        assert wanted in result.err
        assert result.err.count("\n") == 1

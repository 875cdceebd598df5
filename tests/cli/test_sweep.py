"""`moebench sweep`: a grid is trained once, and one run that fails leaves the others."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from moebench.records import Record
from tests.calls import Call


def test_a_grid_is_trained_and_a_second_sweep_does_nothing(
    call: Call, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("random.py").write_text("raise SystemExit('a module in the working directory was run')")
    words = ["sweep", "--jobs", "2", *small, "scope=micro,global", "seed=0"]
    first = call(*words)
    assert first.code == 0
    assert first.out == ""
    lines = first.err.splitlines()
    assert lines[0].startswith("sweep-")
    assert sum(line.startswith("done  micro-s0-") for line in lines) == 1
    assert sum(line.startswith("done  global-s0-") for line in lines) == 1
    [plan] = Path("runs").glob("studies/*/plan.json")
    assert lines[-1] == f"moebench report --study {plan.parent.name} compares the runs"
    runs = json.loads(plan.read_text())["runs"]
    assert [run["arm"] for run in runs] == ["micro", "global"]
    records = [Record(Path("runs") / run["run"]) for run in runs]
    assert [record.damage() for record in records] == [[], []]
    batches = [record.rows()[0]["valid/nats"] for record in records]
    assert batches[0] == batches[1], "arms of a seed begin with equal weights"

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a process was started")

    before = {
        path: path.stat().st_mtime_ns for record in records for path in record.path.rglob("*")
    }
    monkeypatch.setattr("moebench.study.subprocess.Popen", refuse)
    second = call(*words, "--json")
    assert second.code == 0
    assert [run["state"] for run in json.loads(second.out)["runs"]] == ["done", "done"]
    assert before == {path: path.stat().st_mtime_ns for path in before}
    report = call("report", "--study", plan.parent.name, "--json")
    assert report.code == 0
    assert {row["arm"] for row in json.loads(report.out)["rows"]} == {"micro", "global"}


def test_one_run_that_fails_leaves_the_others(call: Call, small: list[str]) -> None:
    words = ["sweep", "--jobs", "2", *small, "optim.lr=1e30,0.003", "seed=0"]
    result = call(*words)
    assert (result.code, result.out) == (3, "")
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    [error] = errors
    records = [Record(path) for path in Path("runs").glob("global-*")]
    assert sorted(record.status()["state"] for record in records) == ["done", "failed"]
    [failed] = [record for record in records if not record.is_done()]
    assert re.match(rf"error: {failed.name}: step \d: the ", error)
    assert error == f"error: {failed.name}: {failed.status()['reason']}"


def test_the_config_of_every_run_is_shown(call: Call, small: list[str]) -> None:
    words = ["sweep", "--print-config", *small, "scope=micro,global"]
    text = call(*words).out
    shown = json.loads(call(*words, "--json").out)
    assert shown["schema_version"] == 1
    documents = list(yaml.safe_load_all(text))
    assert documents == [run["config"] for run in shown["runs"]]
    assert [each["scope"] for each in documents] == ["micro", "global"]
    assert re.findall("^--- # (.+)$", text, re.MULTILINE) == [run["run"] for run in shown["runs"]]
    assert list(Path().iterdir()) == []

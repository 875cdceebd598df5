"""`moebench sweep`: a grid is trained once, and a run that fails does not stop the others."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml

from moebench.cli.options import parse_duration
from moebench.errors import ConfigError
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
    assert sum(line.startswith("sweep-") for line in lines) == 1
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
    monkeypatch.setattr("subprocess.Popen", refuse)
    second = call(*words, "--json")
    assert second.code == 0
    assert [run["state"] for run in json.loads(second.out)["runs"]] == ["done", "done"]
    assert before == {path: path.stat().st_mtime_ns for path in before}
    report = call("report", "--study", plan.parent.name, "--json")
    assert report.code == 0
    assert {row["arm"] for row in json.loads(report.out)["rows"]} == {"micro", "global"}


def test_a_run_that_fails_does_not_stop_the_others(call: Call, small: list[str]) -> None:
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


def test_the_engine_is_let_go_of_though_the_sweep_raises(
    call: Call, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Mock(**{"stack_size.return_value": 1, "worker.return_value": None}, room=1, poll=0.1)
    engine.running.return_value = ()
    engine.start.side_effect = ConfigError("it refuses all of them")
    monkeypatch.setattr("moebench.cli.sweep.open_engine", lambda *_: engine)
    result = call("sweep", *small, "seed=0")
    assert (result.code, result.err.splitlines()[-1]) == (2, "error: it refuses all of them")
    engine.start.assert_called_once()
    engine.close.assert_called_once_with()


def test_the_config_of_every_run_is_shown(call: Call, small: list[str]) -> None:
    words = ["sweep", "--print-config", *small, "scope=micro,none,global"]
    words += ["--seeds", "1", "--exclude", "scope=none", "--name", "mine"]
    text = call(*words).out
    shown = json.loads(call(*words, "--json").out)
    assert shown["schema_version"] == 1
    documents = list(yaml.safe_load_all(text))
    assert documents == [run["config"] for run in shown["runs"]]
    assert [document["scope"] for document in documents] == ["micro", "global"]
    assert re.findall("^--- # (.+)$", text, re.MULTILINE) == [run["run"] for run in shown["runs"]]
    assert list(Path().iterdir()) == []


def test_a_budget_is_shown_and_held(call: Call, small: list[str]) -> None:
    words = ["sweep", *small, "scope=micro,global", "--seeds", "2", "--jobs", "1"]
    plain = call(*words, "--dry-run")
    assert "to train: 2 arms, 4 runs, 4 processes, 1 at a time; 6.14 k tokens" in plain.out
    assert "time here: about " in plain.out
    budget = json.loads(call(*words, "--dry-run", "--json").out)["budget"]
    assert (budget["arms"], budget["runs"], budget["stacks"], budget["tokens"]) == (2, 4, 4, 6144)
    assert budget["flops"] > 0
    assert budget["seconds"]["low"] <= budget["seconds"]["middle"] <= budget["seconds"]["high"]
    none = call(*words, "--hours", "0.00001")
    assert (none.code, none.out) == (2, "")
    [error] = [line for line in none.err.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: --hours 1e-05: the 2 runs of a seed take about ")
    wrong = call(*words, "--hours", "0")
    assert (wrong.code, "0: must be a number of hours above 0" in wrong.err) == (2, True)
    assert list(Path().iterdir()) == [], "nothing is written"

    done = call(*words, "--hours", "1")
    assert done.code == 0, done.err
    assert "--hours 1: 2 of 2 seeds fit by the estimate" in done.err
    sizes = [file.stat().st_size for file in Path("runs").glob("*-s?-*/**/*") if file.is_file()]
    assert 0.5 < budget["disk_bytes"] / sum(sizes) < 2
    assert "nothing is left to train" in call(*words, "--dry-run").out


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("1.5s", 1.5), ("30m", 1800), ("2h", 7200), ("1d", 86400)],
)
def test_a_duration_is_a_number_with_or_without_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


def test_status_shows_progress_and_writes_nothing(call: Call, small: list[str]) -> None:
    words = ["sweep", *small, "scope=micro,global", "seed=0,1"]
    asked = call(*words, "--status")
    assert (asked.code, asked.err) == (0, "")
    assert asked.out.splitlines()[-1].endswith(": 4 waiting")
    assert list(Path().iterdir()) == []

    runs = json.loads(call(*words, "--dry-run", "--json").out)["runs"]
    records = [Record(Path(run["run"])) for run in runs]
    for record, state in zip(records, ("done", "running", "failed"), strict=False):
        record.begin("a: 1", {})
        record.set_status(state, step=3, seconds=6.0, reason="step 4: the [loss] is nan\x1b[31m")
    records[0].seal({})
    (Path("runs") / "studies" / "sweep-00000000").mkdir(parents=True)
    before = sorted((path, path.stat().st_mtime_ns) for path in Path().rglob("*"))
    asked = call(*words, "--status")
    rows = [" ".join(line.split()) for line in asked.out.splitlines()]
    named = call("sweep", *small, "scope=micro", "optim.lr=0.1,0.2", "--status").out
    assert "waiting 0/6 optim.lr=0.2" in " ".join(named.split()), "a run shows what differs"
    assert rows[0] == "run state step left"
    assert rows[1] == f"{records[0].name} done 6/6"
    assert rows[2].startswith(f"{records[1].name} stopped 3/6 its process ended without")
    assert "step 4: the [loss] is nan�" in asked.out
    assert rows[-2] == f"{records[3].name} waiting 0/6"
    assert rows[-1].endswith(": 1 waiting, 1 done, 1 failed, 1 stopped")
    assert max(map(len, asked.out.splitlines())) <= 80
    printed = json.loads(call(*words, "--status", "--json").out)
    assert [run["state"] for run in printed["runs"]] == ["done", "stopped", "failed", "waiting"]
    assert [run["step"] for run in printed["runs"]] == [6, 3, 3, 0]
    assert [run["run"] for run in printed["runs"]] == [str(record.path) for record in records]
    assert printed["seconds_left"] is None
    assert before == sorted((path, path.stat().st_mtime_ns) for path in Path().rglob("*"))


def test_status_without_a_name_is_of_the_latest_sweep(call: Call, small: list[str]) -> None:
    assert call("sweep", *small, "seed=0,1").code == 0
    [plan] = Path("runs").glob("studies/*/plan.json")
    for name in ([], ["sweep"], [plan.parent.name]):
        asked = call("sweep", *name, "--status")
        assert asked.code == 0
        assert asked.out.splitlines()[-1] == f"{plan.parent.name}: 2 done"
    wrong = call("sweep", "sweeep", "--status")
    assert (wrong.code, wrong.out) == (2, "")
    assert wrong.err == "error: sweeep: no such study in runs; there are sweep\n"


def test_status_imports_no_torch(small: list[str]) -> None:
    code = (
        "import sys, moebench.cli\n"
        "sys.argv = ['moebench', 'sweep', '--status', *sys.argv[1:]]\n"
        "try: moebench.cli.main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'pandas', 'tensorboard'} & sys.modules.keys()"
    )
    command = [sys.executable, "-c", code, *small, "seed=0,1"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

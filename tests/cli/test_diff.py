"""`moebench diff`: the same comparison as `moebench report diff`."""

import json
from pathlib import Path

import pytest

from tests.calls import Call
from tests.report.conftest import make_run


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Two runs that differ in their arm."""
    monkeypatch.setattr("os.fsync", lambda _: None)
    path = tmp_path / "runs"
    path.mkdir()
    for arm, nats in (("micro", 1.6), ("global", 1.5)):
        make_run(path, arm, 0, nats)
    return path


@pytest.mark.parametrize("words", [[], ["--format", "md"], ["--json"]])
def test_both_spellings_print_the_same(call: Call, runs: Path, words: list[str]) -> None:
    options = ["--runs-dir", runs, *words]
    names = [path.name for path in sorted(runs.iterdir())]
    compared = call("diff", *names, *options)
    assert (compared.code, compared.err) == (0, "")
    assert "-0.1" in compared.out or "+0.1" in compared.out
    assert call("report", *options, "diff", *names) == compared


def test_json_holds_the_schema_version(call: Call, runs: Path) -> None:
    a, b = sorted(runs.iterdir())
    assert json.loads(call("diff", a, b, "--json").out)["schema_version"] == 1


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["a"], "Missing argument 'B'."),
        (["a", "b", "c"], "Got unexpected extra argument(s) (c)"),
        (
            ["a", "b"],
            "a: no such run or study in runs; moebench train makes a run, moebench sweep a study\n"
            "error: b: no such run or study in runs; moebench train makes a run, moebench sweep a "
            "study",
        ),
        (["a", "b", "--format", "csv"], "--format csv: must be one of table, md, latex, json"),
    ],
)
def test_what_is_wrong_is_one_line(call: Call, words: list[str], error: str) -> None:
    assert call("diff", *words) == (2, "", f"error: {error}\n")


def test_a_run_beside_a_name_of_nothing(call: Call, runs: Path) -> None:
    run = sorted(runs.iterdir())[0]
    result = call("diff", run, f"{run.name[:-1]}x", "--runs-dir", runs)
    assert result == (
        2,
        "",
        f"error: {run.name[:-1]}x: no such run or study in {runs}; did you mean {run.name}?\n",
    )

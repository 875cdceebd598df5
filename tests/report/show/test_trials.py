"""What a report says of the trials that chose the values of arms."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moebench.errors import RecordError
from moebench.records import Record
from moebench.report import make_report

Make = Callable[..., Record]
SEARCH = {
    "name": "0a",
    "arms": ["global", "global perturb=1e-06"],
    "ranges": ["loss.balance=0.001..1", "optim.lr=0.001..0.01"],
    "trials": 4,
    "failed": 1,
    "seeds": [1000, 1001, 1002],
    "values": "loss.balance=0.02 optim.lr=0.009",
    "result": 2.25,
    "journal": "0" * 64,
}
TUNED: dict[str, Any] = {
    "searches": [SEARCH, SEARCH | {"name": "0b", "arms": ["micro"], "failed": 0}],
    "typed": ["study=tuned", "--seeds", "1"],
    "tuned_by": ["tune", "study=tuned", "--trials", "4"],
}


def test_the_trials_of_each_arm_are_told(runs: Path, run: Make, plan: Callable[..., Path]) -> None:
    plan(runs, "tuned", [run(runs, "global"), run(runs, "micro")], **TUNED)
    report = make_report([], study="tuned", runs_dir=runs)
    text = report.render("md")
    _, _, told = text.partition("Trials")
    assert "on seeds 1000 to 1002 and the tune half" in told
    rows = [line for line in told.splitlines() if "0.02" in line]
    assert len(rows) == 2
    for word in (
        "also global perturb=1e-06",
        "4",
        "1 failed",
        *SEARCH["ranges"],
        "2.2500",
        "; optim.lr near",
    ):
        assert word in rows[0]
    assert "failed" not in rows[1]
    page = report.page("moebench report --html page.html")
    commands = page.partition("How this was made</h2>")[2]
    tune, sweep = commands.find("tune study=tuned --trials 4"), commands.find("sweep study=tuned")
    assert 0 < tune < sweep


def test_a_study_without_searches_tells_of_none(
    runs: Path, run: Make, plan: Callable[..., Path]
) -> None:
    plan(runs, "tuned", [run(runs, "global"), run(runs, "micro")], typed=["study=tuned"])
    report = make_report([], study="tuned", runs_dir=runs)
    assert "Trials" not in report.render("md")
    assert "moebench tune" not in report.page("moebench report")


@pytest.mark.parametrize(
    "change",
    [
        {"values": "optim.lr=0.009"},
        {"values": "loss.balance=1 optim.lr=-1"},
        {"values": "x"},
        {"arms": []},
        {"seeds": []},
        {"ranges": ["optim.lr=2..1"]},
        {"trials": 0},
    ],
)
def test_a_search_that_none_has_written_makes_the_plan_a_broken_one(
    change: dict[str, Any], runs: Path, run: Make, plan: Callable[..., Path]
) -> None:
    plan(runs, "tuned", [run(runs, "micro")], **TUNED | {"searches": [SEARCH | change]})
    with pytest.raises(RecordError, match=r"is not a plan \(searches\[0\]"):
        make_report([], study="tuned", runs_dir=runs)

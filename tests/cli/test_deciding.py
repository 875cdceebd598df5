"""`moebench sweep --until-decided`: looks, a resumed study, hours, refusals.

Runs are not trained: a stand-in for the launcher's loop writes the record of each.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from moebench.cli import hours
from moebench.plans import Job
from tests.calls import Call
from tests.cli.rules import only_plan, write


def test_a_study_ends_at_the_first_look_that_decides(
    call: Call, trained: dict[str, Any], ruled: list[str]
) -> None:
    done = call(*ruled)
    assert (done.code, trained["seeds"]) == (0, [[0, 1, 2]])
    assert "stopping rule: 01-global-below-micro is looked at after 3 (0.5 %), 6 (1 %)" in done.err
    assert "3 of at most 12 seeds, tested at 0.5 %: the first finding is decided" in done.err
    assert "by hand" not in done.err
    plan = only_plan()
    assert (plan.most_seeds, len(plan.seeds)) == (12, 12)
    assert plan.typed is not None
    assert plan.typed[-3:] == ("--most-seeds", "12", "--until-decided")
    again = call(*ruled)
    assert (again.code, trained["seeds"]) == (0, [[0, 1, 2]]), "nothing more is trained"


def test_seeds_that_were_added_by_hand_move_no_end(
    call: Call, trained: dict[str, Any], ruled: list[str]
) -> None:
    assert call(*ruled).code == 0
    for job in only_plan().jobs:
        if job.seed == 3:
            write(Path("runs"), job, 0.0, 100.0)
    again = call(*ruled)
    assert (again.code, trained["seeds"]) == (0, [[0, 1, 2]]), "nothing more is trained"
    assert "look 1 of 3, 3 of at most 12 seeds, tested at 0.5 %: the first finding" in again.err
    assert "look 2 of 3" not in again.err
    assert "later seeds were added by hand, with which a report gives no verdict" in again.err


def test_a_study_that_is_too_early_for_a_verdict_says_why_it_stops(
    call: Call, trained: dict[str, Any], ruled: list[str]
) -> None:
    trained["trigram"] = 0.1
    done = call(*ruled)
    assert (done.code, trained["seeds"]) == (0, [[0, 1, 2]])
    assert "is worse than the 0.100 of a byte trigram. No verdict at this look, so" in done.err
    assert "no more seeds are trained; train longer (train.steps)." in done.err


def test_an_undecided_study_goes_on_to_its_last_look(
    call: Call, trained: dict[str, Any], ruled: list[str]
) -> None:
    trained["effect"] = 0.0
    assert call(*ruled).code == 0
    assert trained["seeds"] == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9, 10, 11]]
    report = json.loads(call("report", "--study", "scope", "--json").out)
    assert report["tables"][0]["rule"]["look"]["number"] == 3


def test_a_margin_ends_a_study_without_a_difference(
    call: Call, trained: dict[str, Any], ruled: list[str]
) -> None:
    trained["effect"] = 0.0
    done = call(*ruled, "--margin", "0.3")
    assert trained["seeds"] == [[0, 1, 2]]
    assert "no difference beyond the margin of 0.3 nats a byte, which ends the study" in done.err
    assert call(*ruled).code == 0, "the margin of the plan is kept"
    assert only_plan().margin == 0.3
    precise = call(*ruled, "--margin", "0.30000001")
    assert "--margin 0.30000001: scope-" in precise.err
    other = call(*ruled, "--margin", "0.2")
    assert (other.code, other.err.splitlines()[-1].partition(":")[0]) == (2, "error")
    assert "was planned with 0.3" in other.err


@pytest.mark.parametrize(
    ("typed", "error"),
    [
        (["study.order=[nope]"], "study.order=nope: is no finding; did you mean 01-"),
        (
            ["study.order=[01-global-below-micro,01-global-below-micro]"],
            "study.order=01-global-below-micro: comes twice; name it once",
        ),
        (
            ["study.order=[05-pure-micro-batches,01-global-below-micro]"],
            "--until-decided: scope has no arms that show 05-pure-micro-batches in valid/nats, ",
        ),
        (
            ["--exclude", "scope=global"],
            "--until-decided: scope has no arms that show 01-global-below-micro in valid/nats, the "
            "first finding of its order; name another first, as in 'study.order=[02-shuffled",
        ),
        (["--margin", ""], "--margin: is empty; type nats a byte, or leave it out"),
        (["--status"], "--register --status: one writes, one shows; use only one"),
    ],
)
def test_a_rule_that_could_not_look_at_what_was_typed_is_refused(
    call: Call, ruled: list[str], typed: list[str], error: str
) -> None:
    done = call(*ruled, *typed, "--register")
    assert (done.code, done.err.splitlines()[-1].startswith(f"error: {error}")) == (2, True)
    assert not [*Path("runs").glob("studies/*")]


def test_a_study_goes_on_where_it_stopped(
    call: Call, trained: dict[str, Any], ruled: list[str]
) -> None:
    trained.update(effect=0.0, fails=True)
    failed = call(*ruled)
    assert (failed.code, trained["seeds"]) == (3, [[0, 1, 2]])
    trained["fails"] = False
    assert call(*ruled).code == 0
    assert trained["seeds"][1:] == [[3, 4, 5], [6, 7, 8, 9, 10, 11]]


def test_hours_end_at_a_whole_look(
    call: Call, trained: dict[str, Any], ruled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Estimate:
        def makespan(self, jobs: list[Job]) -> Any:
            return type("Range", (), {"middle": 60.0 * len({job.seed for job in jobs})})

    trained["effect"] = 0.0
    monkeypatch.setattr(hours, "budget", lambda _: Estimate())
    monkeypatch.setattr(hours.Timer, "took", lambda *_: None)
    short = call(*ruled, "--hours", "0.04")
    assert (short.code, trained["seeds"]) == (2, [])
    assert "error: --hours 0.04: the look at 3 seeds takes about 0.05 more hours" in short.err
    monkeypatch.undo()


def test_hours_leave_a_look_that_does_not_fit_for_later() -> None:
    class Estimate:
        def makespan(self, _: Any) -> Any:
            return type("Range", (), {"middle": 100.0})

    timer = hours.Timer(1.0)
    launcher: Any = type("Launcher", (), {"waiting": []})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hours, "budget", lambda _: Estimate())
        assert timer.fits(launcher, 4)
        timer.took(4000.0)  # 40 times the estimate
        assert not timer.fits(launcher, 8)
        timer.took(100.0)
        assert timer.fits(launcher, 8)
    assert hours.Timer(None).fits(launcher, 4)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--most-seeds", "16"], "--most-seeds 16: is for --until-decided"),
        (["--margin", "1"], "--margin 1: is for --until-decided and --register"),
        (["--until-decided", "--detach"], "--until-decided --detach: looks at the runs"),
        (["--until-decided", "--launcher", "commands"], "--until-decided --launcher commands:"),
        (["--until-decided", "--seeds", "8"], "--seeds 8: takes --most-seeds"),
        (["--until-decided", "--most-seeds", "14"], "--most-seeds 14: 14 seeds; a study"),
        (["--until-decided", "--margin", "0"], "--margin 0: must be above 0 and finite, in"),
        (
            ["data=folder", "data.path=nowhere", "--until-decided", "--margin", "-1"],
            "--margin -1: must",
        ),
        (["--until-decided", "--margin", "1e999"], "--margin 1e999: must be above 0 and finite"),
        (["--until-decided", "--margin", "room"], "--margin room: is neither a number above 0 nor"),
        (["--until-decided", "--margin", "1_0"], "--margin 1_0: is neither a number above 0 nor"),
        (["--until-decided", "seed=range(100,104)"], "seed=range(100,104): 4 seeds; a study that"),
        (["--until-decided", "scope=micro,global"], "a grid has no order of findings"),
        (
            ["--until-decided", "seed=range(12)", "--most-seeds", "16"],
            "seed=range(12) names 12 of them; keep",
        ),
        (["--until-decided", "model.top_k=1,2"], "as they differ in model.top_k, and a rule"),
        (["--until-decided", "--exclude", "scope=micro seed=3"], "give every arm every seed"),
        (["--register", "seed=1000"], "--register: seed=1000: seeds from 1000 on"),
    ],
)
def test_what_does_not_go_together_is_refused(
    call: Call, trained: dict[str, Any], small: list[str], words: list[str], error: str
) -> None:
    study = [] if words[-1] == "scope=micro,global" else ["study=demo"]
    found = call("sweep", *study, *small, *words)
    assert found.code == 2
    [line] = [line for line in found.err.splitlines() if line.startswith("error: ")]
    assert error in line
    assert trained["seeds"] == []

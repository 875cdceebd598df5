"""Reports on studies that end by rule."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moebench.records import Record, find_records
from moebench.report import make_report
from tests.report.examples import texts
from tests.report.ruled import (
    GLOBAL,
    MICRO,
    SHUFFLED,
    Make,
    arm_of,
    findings,
    remove,
    report,
)


def test_a_difference_ends_a_study_at_its_first_look(
    runs: Path, study: Callable[..., Path]
) -> None:
    study(-40.0)
    made, content = report(runs)
    (about,) = content["tables"]
    assert about["rule"]["look"] == {"number": 1, "of": 3, "seeds": 3, "most": 12, "level": 0.005}
    assert (about["rule"]["outcome"], about["rule"]["ended"]) == ("decided", True)
    assert (about["level"], about["interim"], content["unfinished"]) == (0.005, None, [])
    assert [verdict for verdict, _ in findings(content)[:2]] == ["agrees", "agrees"]
    text = texts(made)
    assert "look 1 of 3, 3 of at most 12 seeds, tested at 0.5 %" in text
    assert "the first finding is decided, which ends the study" in text
    assert "each is tested at 0.5 %" in text
    assert "its own 99.5 % interval" in text
    assert "decided at 0.5 %" in "\n".join(map(str, made.brief(200)))


@pytest.mark.parametrize(
    ("effect", "seeds", "level", "told"),
    [(-0.6, 6, 0.010, "cannot tell"), (-0.3, 12, 0.035, "agrees")],
)
def test_the_level_is_that_of_the_look(
    runs: Path, study: Callable[..., Path], effect: float, seeds: int, level: float, told: str
) -> None:
    """A p between the levels of the second look and the third decides at the third alone."""
    study(effect, seeds)
    _, content = report(runs)
    (about,) = content["tables"]
    assert about["rule"]["look"]["seeds"] == seeds
    assert about["level"] == level
    assert 0.010 < content["findings"][0]["p"] < 0.035, "else this test shows nothing"
    assert findings(content)[0][0] == told


def test_an_undecided_look_is_no_end_and_no_interim(runs: Path, study: Callable[..., Path]) -> None:
    study(-1.0)
    made, content = report(runs)
    (about,) = content["tables"]
    assert (about["rule"]["outcome"], about["rule"]["ended"]) == ("", False)
    assert [verdict for verdict, _ in findings(content)[:2]] == ["cannot tell", "not tested"]
    assert "the next look is at 6 seeds" in texts(made)


def test_between_two_looks_there_is_no_verdict(runs: Path, study: Callable[..., Path]) -> None:
    study(-1.0, 5)
    _, content = report(runs)
    (about,) = content["tables"]
    assert about["interim"]["left"] == {"not begun": 3}
    assert about["rule"]["look"]["number"] == 2
    assert {verdict for verdict, _ in findings(content)} == {"too early"}


def test_a_seed_of_which_some_arms_began_counts_for_nothing(
    runs: Path, study: Callable[..., Path]
) -> None:
    """Another study may share them."""
    study(-40.0, 4)
    [last] = [record for record in map(Record, runs.glob("*-s3")) if arm_of(record) == "shuffled"]
    remove(last)
    _, content = report(runs)
    assert {row["arm"]: row["seeds"] for row in content["rows"]} == {
        arm: [0, 1, 2] for arm in ("micro", "global", "shuffled")
    }
    assert content["tables"][0]["rule"]["ended"]


def test_seeds_after_the_end_void_the_level(runs: Path, study: Callable[..., Path]) -> None:
    study(-40.0, 6)
    made, content = report(runs)
    (about,) = content["tables"]
    assert about["rule"]["void"] == (
        "the rule ended the study at look 1 of 3, 3 of at most 12 seeds, and seeds were added by "
        "hand"
    )
    assert {verdict for verdict, _ in findings(content)} == {"not tested"}
    assert all(row["metrics"]["valid/nats"].get("p") is None for row in content["rows"])
    assert "Its level is void: the rule ended the study" in texts(made)


def test_a_seed_that_failed_in_all_arms_moves_no_look(
    runs: Path, study: Callable[..., Path]
) -> None:
    """Else three other seeds would have decided at the first look."""
    study(-40.0, 6)
    for record in find_records(runs):
        if record.manifest()["seed"] == 1:
            (record.path / "summary.json").unlink()
            record.set_status("failed", step=1, steps=2, reason="it failed")
    _, content = report(runs)
    assert content["tables"][0]["rule"]["void"] == ""
    assert content["findings"][0]["reason"] == "5 seeds, and a verdict takes 6"


def test_seeds_of_no_plan_void_the_level(runs: Path, run: Make, study: Callable[..., Path]) -> None:
    study(-40.0)
    for arm, science in (("micro", MICRO), ("global", GLOBAL)):
        run(runs, arm, 77, 1.6, science=science)
    content = make_report([runs], runs_dir=runs).to_dict()
    assert content["tables"][0]["rule"]["void"].endswith("were added (77)")
    assert {verdict for verdict, _ in findings(content)} == {"not tested"}
    assert report(runs)[1]["tables"][0]["rule"]["void"] == "", "the study does not have that seed"


def test_a_difference_within_the_margin_ends_a_study_and_its_order(
    runs: Path, study: Callable[..., Path]
) -> None:
    study(0.0, margin=0.2)
    made, content = report(runs)
    (about,) = content["tables"]
    assert about["rule"]["outcome"] == "no difference beyond the margin"
    assert findings(content)[0] == ("within margin", "between -0.2 and 0.2")
    assert findings(content)[1][0] == "not tested"
    assert "no difference beyond the margin of 0.2 nats a byte, which ends the study" in texts(made)


SLOPE = ["04-falls-with-balance-bsz", "01-global-below-micro"]
AS_GOOD = ["03-shuffled-equals-global", "01-global-below-micro"]


def middle(effect: float) -> tuple[str, float, dict[str, Any]]:
    """An arm on the line from micro to global, whose groups have 4 and 128 sequences."""
    return "global-16", effect * 2 / 5, {"balance_bsz": 16}


@pytest.mark.parametrize(
    ("effect", "margin", "outcome", "verdicts"),
    [
        (-40.0, None, "decided", ["agrees", "agrees"]),
        (-40.0, 0.2, "decided", ["agrees", "agrees"]),  # 0.08 a doubling, but off zero
        (0.0, 0.05, "no difference beyond the margin", ["within margin", "not tested"]),
        (0.0, 0.001, "", ["cannot tell", "not tested"]),
        (0.0, None, "", ["cannot tell", "not tested"]),
    ],
)
def test_a_slope_ends_a_study(
    runs: Path,
    study: Callable[..., Path],
    effect: float,
    margin: float | None,
    outcome: str,
    verdicts: list[str],
) -> None:
    study(effect, third=middle(effect), order=SLOPE, margin=margin)
    made, content = report(runs)
    assert content["tables"][0]["rule"]["outcome"] == outcome
    said = {each["type"]: each for each in content["findings"]}
    assert [said[kind]["verdict"] for kind in ("trend", "difference")] == verdicts
    if verdicts[0] == "within margin":
        assert said["trend"]["reason"] == "between -0.05 and 0.05 a doubling"
        assert "the margin of 0.05 nats a byte a doubling, which ends" in texts(made)
    if outcome == "":
        assert "the next look is at 6 seeds" in texts(made)


@pytest.mark.parametrize(
    ("effect", "shuffled", "margin", "outcome", "verdicts"),
    [
        (-40.0, -40.0, None, "decided", ["agrees", "agrees"]),  # within a quarter of the gap
        (-40.0, 0.0, 0.2, "decided", ["contradicts", "agrees"]),
        (0.0, 0.0, 0.2, "no difference beyond the margin", ["within margin", "not tested"]),
        (-40.0, -30.0, 0.001, "", ["cannot tell", "not tested"]),  # off zero, at the quarter
        (0.0, 0.0, None, "", ["cannot tell", "not tested"]),  # no gap to measure by
    ],
)
def test_as_good_as_ends_a_study(
    runs: Path,
    study: Callable[..., Path],
    effect: float,
    shuffled: float,
    margin: float | None,
    outcome: str,
    verdicts: list[str],
) -> None:
    study(effect, third=("shuffled", shuffled, SHUFFLED), order=AS_GOOD, margin=margin)
    content = report(runs)[1]
    assert content["tables"][0]["rule"]["outcome"] == outcome
    said = {each["claim"]: each["verdict"] for each in content["findings"]}
    claims = ("Shuffled is as good as global.", "Global gives a lower perplexity than micro.")
    assert [said[claim] for claim in claims] == verdicts


def test_without_the_rule_nothing_changes(runs: Path, study: Callable[..., Path]) -> None:
    study(-40.0, 12, most_seeds=None)
    made, content = report(runs)
    (about,) = content["tables"]
    assert (about["rule"], about["level"], about["registered"]) == (None, 0.05, None)
    assert "Stopping rule" not in texts(made)
    assert "each is tested at 5 %" in texts(made)

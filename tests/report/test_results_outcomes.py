"""The words of the page of results for what a study finds, and which of several studies speaks."""

import runpy
from pathlib import Path

from docs.published.cells import distinct
from docs.published.study import Study
from tests.report.published import fake_study

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "results.py"))


def test_the_same_runs_stand_once_in_the_words_of_a_planned_test(runs: Path) -> None:
    planned, other = (fake_study(runs / name) for name in "ab")
    planned.about["look"] = "Stopping rule: look 2 of 3."
    assert [each.name for each in distinct({"other": other, "planned": planned})] == ["planned"]
    assert [each.name for each in distinct({"a": other, "b": other})] == ["a"]
    for row in [*other.runs, *other.effects]:  # a study of weights names its arms by them
        row |= {side: f"{row[side]} 0.1" for side in ("arm", "against") if side in row}
    assert [each.name for each in distinct({"other": other, "planned": planned})] == ["planned"]


def test_what_studies_say_of_shared_runs_stands_once_with_a_test() -> None:
    def study(p: float | None, value: float = -0.02) -> Study:
        effect = {"name": "finding", "claim": "x", "arm": "global", "against": "micro", "part": ""}
        found = Study({"study": "scope", "domains": "13"})
        found.effects = [{**effect, "metric": "valid/nats", "value": value, "p": p}]
        return found

    said = distinct({"a": study(None), "b": study(0.01), "c": study(0.01), "d": study(0.5, 0.1)})
    assert [each.name for each in said] == ["b", "d"]


def test_a_study_without_a_rule_does_not_test_what_the_rule_left_untested(runs: Path) -> None:
    """On some of the runs of the study that ended by its rule."""
    planned, few = fake_study(runs / "planned"), fake_study(runs / "few", 4)
    planned.about["look"] = "Stopping rule: look 2 of 3."
    for effect in planned.found("finding"):
        effect |= {"p": None, "verdict": "not tested"}
    for effect in few.found("finding"):
        effect |= {"p": 0.01, "verdict": "agrees"}
    assert {each.name for each in distinct({"few": few, "planned": planned})} == {"planned"}


def test_what_is_not_tested_is_left_out_if_it_is_tested_on_more_runs(runs: Path) -> None:
    whole, few = (fake_study(runs / str(seeds), seeds) for seeds in (6, 4))
    assert {each.name for each in distinct({"few": few, "whole": whole})} == {"whole"}
    page = SCRIPT["generated"]({"whole": whole, "again": whole})
    assert page.split("### Compute-equivalent gain")[1].count("| `global` | `micro` |") == 1
    for run in few.runs:
        run["seed"] += 100
    assert {each.name for each in distinct({"few": few, "whole": whole})} == {"few", "whole"}

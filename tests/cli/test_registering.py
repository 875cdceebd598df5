"""What was planned or registered, and what differs from it since: rules, orders, seeds.

Runs are not trained: a stand-in for the launcher's loop writes the record of each.
"""

import json
import re
from pathlib import Path
from typing import Any

from moebench.records import Record
from tests.calls import Call
from tests.cli.rules import RULE, STUDY, only_plan, plan_file, registered


def test_a_damaged_plan_keeps_the_rule_of_its_preregistration(
    call: Call, trained: dict[str, Any], ruled: list[str], small: list[str]
) -> None:
    trained["effect"] = 0.0
    path = registered(call, *ruled, "--margin", "0.001")
    path.write_text("{")
    without = call(*STUDY, *small, "seed=range(12)")
    assert (without.code, trained["seeds"]) == (2, [])
    assert "was planned to end by rule; add --until-decided" in without.err
    assert call(*ruled).code == 0
    assert only_plan().margin == 0.001
    path.unlink()
    again = call(*ruled)
    assert again.code == 0
    assert "plan.json: is not a plan (" in again.err
    assert "the sweep writes it again by prereg.json" in again.err
    assert (only_plan().most_seeds, only_plan().margin) == (12, 0.001)
    path.write_text("{")
    path.with_name("prereg.json").write_text("{")
    refused = call(*ruled)
    assert (refused.code, path.read_text()) == (2, "{")
    assert "72 runs have begun before; restore the plan, or take seeds" in refused.err
    told = call(*STUDY, *small, "seed=range(12)", "--dry-run").err
    assert "the sweep writes it again, without a stopping rule" in told


def test_a_plan_whose_order_was_edited_by_hand_is_written_again_as_registered(
    call: Call, trained: dict[str, Any], ruled: list[str]
) -> None:
    path = registered(call, *ruled)
    order = only_plan().order
    text = path.read_text()
    path.write_text(text.replace(f'"{order[0]}"', f'"{order[1]}"', 1))
    again = call(*ruled, "--register")
    assert (again.code, "keeps the order" in again.err) == (0, False)
    assert "was edited after its sweep" in again.err
    assert call(*ruled).code == 0
    assert only_plan().order == order


def test_an_edited_plan_still_tells_that_it_was_to_end_by_rule(
    call: Call, trained: dict[str, Any], ruled: list[str], small: list[str]
) -> None:
    trained["effect"] = 0.0
    path = registered(call, *ruled, "--margin", "0.001")
    path.with_name("prereg.json").unlink()
    path.write_text(path.read_text().replace("0.001", "0.002"))
    without = call(*STUDY, *small, "seed=range(12)", "--dry-run")
    assert (without.code, "was planned to end by rule" in without.err) == (2, True)
    told = call(*ruled, "--dry-run")
    assert told.code == 0
    assert "edited after its sweep; the sweep writes it again, as it is typed" in told.err
    assert "no margin" in told.out


def test_a_sweep_says_in_what_it_is_not_as_registered(
    call: Call, ruled: list[str], small: list[str]
) -> None:
    plain = [*STUDY, *small, "seed=range(12)"]
    path = registered(call, *plain).with_name("prereg.json")
    told = call(*ruled, "--margin", "0.1", "--dry-run").err
    assert "otherwise in its most seeds of the stopping rule, margin; the report says so" in told
    assert "otherwise" not in call(*plain, "--dry-run").err
    path.write_text("{")
    assert "prereg.json: is no preregistration (" in call(*plain, "--dry-run").err


def test_a_plan_of_an_earlier_version_is_not_called_edited(
    call: Call, ruled: list[str], small: list[str]
) -> None:
    plain = [*STUDY, *small, "seed=range(12)"]
    path = registered(call, *plain)
    path.with_name("prereg.json").unlink()
    old = json.loads(path.read_text())
    del old["sha256"]
    path.write_text(json.dumps(old))
    for typed in (plain, ruled):
        told = call(*typed, "--dry-run")
        assert (told.code, "edited" in told.err) == (0, False)


def test_another_order_of_findings_is_refused_once_runs_have_begun(
    call: Call, trained: dict[str, Any], ruled: list[str]
) -> None:
    trained["effect"] = 0.0
    assert call(*ruled, "--register").code == 0
    assert call(*ruled, "study.order=[02-shuffled-below-micro]", "--dry-run").code == 0
    assert call(*ruled).code == 0
    seen = len(trained["seeds"])
    other = call(*ruled, "study.order=[02-shuffled-below-micro]")
    assert (other.code, len(trained["seeds"])) == (2, seen)
    assert "--until-decided with a change of its order of findings: 72 runs have begun" in other.err
    assert only_plan().order[0] == "01-global-below-micro"


def test_a_study_keeps_the_order_of_findings_that_it_was_planned_with(
    call: Call, trained: dict[str, Any], ruled: list[str], small: list[str]
) -> None:
    """A preset may begin with another finding since."""
    order = "study.order=[02-shuffled-below-micro,01-global-below-micro]"
    assert call(*ruled, order, "--register").code == 0
    again = call(*ruled, "--register")
    assert again.code == 0, "it is registered already"
    assert "was planned with, 02-shuffled-below-micro, 01-global-below-micro, and not" in again.err
    done = call(*ruled)
    assert (done.code, trained["seeds"]) == (0, [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9, 10, 11]])
    assert "stopping rule: 02-shuffled-below-micro is looked at after" in done.err
    assert only_plan().order == ("02-shuffled-below-micro", "01-global-below-micro")
    assert order in (only_plan().typed or ()), "the words that make it elsewhere"
    [table] = json.loads(call("report", "--study", "scope", "--json").out)["tables"]
    assert [d.partition(":")[0] for d in table["registered"]["deviations"]] in ([], ["code"])
    plain = [*STUDY, *small, "seed=20"]
    assert "keeps the order" not in call(*plain, "--dry-run").err, "of a plan of its own"


def test_a_study_that_was_planned_without_an_order_gets_none_later(
    call: Call, small: list[str]
) -> None:
    plain = [*STUDY, *small, "seed=20"]
    registered(call, *plain, "study.order=[]")
    again = call(*plain, "--register")
    assert (again.code, only_plan().order) == (0, ())
    assert "planned with, none, and not that of study=scope" in again.err
    ruled = call(*STUDY, *small, "seed=range(20,32)", "study.order=[]", *RULE[:1])
    assert "scope has no order of findings, whose first one is looked at; choose" in ruled.err


def test_what_was_registered_is_trained_later(
    call: Call, trained: dict[str, Any], ruled: list[str], small: list[str]
) -> None:
    made = call(*ruled, "--margin", "0.001", "--register")
    assert (made.code, trained["seeds"]) == (0, [])
    [file] = Path("runs").glob("studies/*/prereg.json")
    content = json.loads(file.read_text())
    assert f"prereg.json: sha256 {content['sha256']}" in made.err.replace("\n", " ")
    assert "publish this hash before the first run" in made.err
    again = json.loads(call(*ruled, "--register", "--json").out)
    assert (Path(again["path"]), again["sha256"]) == (file, content["sha256"])
    assert content["seeds"] == list(range(12))
    assert [look["seeds"] for look in content["looks"]] == [3, 6, 12]
    assert (content["margin"], content["margin_from"]) == (0.001, "typed")
    assert content["order"][0] == "01-global-below-micro"
    assert content["arms"].keys() == {job.arm_hash for job in only_plan().jobs}
    assert "train.steps=6" in content["overrides"]
    assert call(*ruled).code == 0
    assert trained["seeds"] == [[0, 1, 2]]
    table = json.loads(call("report", "--study", "scope", "--json").out)["tables"][0]
    assert table["registered"]["sha256"] == content["sha256"]
    assert [d.partition(":")[0] for d in table["registered"]["deviations"]] in ([], ["code"])
    late = call(*STUDY, *small, "seed=range(0,12)", "--register")
    assert late.code == 2
    assert re.search(r"was planned to end by rule; add --until-decided", late.err)


def test_seeds_that_are_added_by_hand_are_said_to_cost_a_verdict(
    call: Call, ruled: list[str], small: list[str]
) -> None:
    slug = registered(call, *ruled).parent.name
    told = f"{slug}: ends by rule, and has no verdict in a report with other seeds"
    assert told in call(*STUDY, *small, "seed=range(0,13)", "--register").err
    assert told not in call(*STUDY, *small, "seed=range(0,6)", "--register").err, "none is added"
    grid = ["sweep", *small, "scope=micro,global", "seed=12", "--register"]
    assert told in call(*grid, "loss.balance=0.05").err, "a report of all runs has both"
    assert told not in call(*grid, "loss.balance=0.5").err, "these are other arms"


def test_seeds_of_later_looks_are_said_to_cost_a_verdict_at_an_earlier_one(
    call: Call, trained: dict[str, Any], ruled: list[str], small: list[str]
) -> None:
    assert call(*ruled).code == 0
    slug, told = (
        plan_file().parent.name,
        "may end by rule at its look at 3 seeds; it has no verdict",
    )
    assert f"{slug}: {told}" in call(*STUDY, *small, "seed=range(0,4)", "--dry-run").err
    assert told not in call(*STUDY, *small, "seed=range(0,3)", "--dry-run").err


def test_seeds_that_somebody_may_have_seen_are_refused(
    call: Call, trained: dict[str, Any], ruled: list[str], small: list[str]
) -> None:
    trained["effect"] = 0.0
    plan = json.loads(call(*STUDY, *small, "seed=3", "--dry-run", "--json").out)
    run = plan["runs"][0]["run"]
    Record(Path(run)).begin("seed: 3\n", {})
    found = call(*ruled)
    assert (found.code, trained["seeds"]) == (2, [])
    assert f"--until-decided: {Path(run).name} has begun before; restore runs/stud" in found.err
    assert "plan.json if it was lost, or take seeds that nobody has seen" in found.err

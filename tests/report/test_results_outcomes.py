"""The words of the page of results for what a study finds, and which of several studies speaks."""

import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from docs.published.cells import distinct
from docs.published.study import Study
from docs.published.words import in_short
from moebench.plans import PRIMARY
from moebench.report.paper.findings import findings
from tests.report.published import GLOBAL, fake_study, ruled_study

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "results.py"))
SIZES = {"balance_bsz": 16}, GLOBAL
MIXED = {"data.homogeneity": 0.5}, {"data.homogeneity": 0.0}
BUFFER = GLOBAL | {"balance.estimator": "buffer", "balance.pass_bsz": 4}
KNOWN = "01-global-below-micro"
FIRST = findings()[KNOWN]["claim"]
ONE_SIDED = ("agrees", "contradicts", "in the paper's direction", "better", "lower", "higher")


def slope(runs: Path, a_doubling: float, seeds: int, noise: float) -> Study:
    """Of a study of the number of sequences, whose five doublings each change the loss so much."""
    shifts = (0.0, 2 * a_doubling, 5 * a_doubling)
    sciences = zip(("micro", "global-16", "global"), shifts, ({}, *SIZES), strict=True)
    arms = {arm: (shift, science) for arm, shift, science in sciences}
    order = ["04-falls-with-balance-bsz", KNOWN]
    return ruled_study(runs, "balance_bsz", arms, seeds, noise, order=order, margin=0.0016)


def mixed(runs: Path, harm: float, seeds: int, noise: float) -> Study:
    """Of a study of homogeneity, in which pure micro-batches cost so much more than mixed ones."""
    arms = {
        "micro": (harm, {}),
        "micro homogeneity=0.5": (harm / 2, MIXED[0]),
        "micro homogeneity=0": (0.0, MIXED[1]),
        "global": (0.0, GLOBAL),
    }
    order = ["05-pure-micro-batches", KNOWN]
    return ruled_study(runs, "homogeneity", arms, seeds, noise, order=order, margin=0.008)


def buffered(runs: Path, cost: float, seeds: int, noise: float) -> Study:
    """Of a study of estimators, in which a buffer costs so much; micro is 0.02 above global."""
    arms = {"global": (0.0, GLOBAL), "global buffer=4": (cost, BUFFER), "micro": (0.02, {})}
    rule = {"order": ["08-buffer-equals-exact", KNOWN], "margin": 0.008, "baseline": "global"}
    return ruled_study(runs, "estimator", arms, seeds, noise, **rule)


DECIDED = "the first finding is decided, which ends the study."
OPEN = "the last look, and the first finding is not decided."
WITHIN = "no difference beyond the margin of {} nats a byte{}, which ends the study."
DOUBLING, PURE = " a doubling", " from mixed to pure"


@pytest.mark.parametrize(
    ("make", "effect", "seeds", "noise", "look", "verdict", "per"),
    [
        (slope, -0.005, 4, 0.002, DECIDED, "agrees, -", DOUBLING),
        (slope, 0.005, 4, 0.002, DECIDED, "contradicts, 0.0", DOUBLING),
        (slope, -0.002, 16, 0.02, OPEN, "cannot tell, -", DOUBLING),
        (mixed, 0.03, 4, 0.002, DECIDED, "agrees, 0.0", PURE),
        (mixed, 0.005, 16, 0.012, OPEN, "cannot tell, 0.0", PURE),
        (buffered, 0.0, 4, 0.001, DECIDED, "agrees, ", ""),
        (buffered, 0.03, 4, 0.001, DECIDED, "contradicts, 0.0", ""),
        (buffered, 0.004, 16, 0.012, OPEN, "cannot tell, 0.0", ""),
    ],
)
def test_slopes_and_equalities_have_their_verdict_in_the_first_lines(
    runs: Path,
    make: Callable[..., Study],
    effect: float,
    seeds: int,
    noise: float,
    look: str,
    verdict: str,
    per: str,
) -> None:
    """At each look, decided or not."""
    study = make(runs, effect, seeds, noise)
    assert study.about["look"].endswith(look)
    assert line_of(study).startswith(verdict)
    assert line_of(study).endswith(f") nats a byte{per}." if per else ").")


@pytest.mark.parametrize(
    ("make", "noise", "margin", "per", "why"),
    [
        (slope, 0.005, "0.0016", DOUBLING, "between -0.0016 and 0.0016 a doubling"),
        (mixed, 0.0035, "0.008", PURE, "between -0.008 and 0.008 from mixed to pure"),
        (buffered, 0.004, "0.008", "", "as good within 0.008"),
    ],
)
def test_what_ends_within_a_margin_is_said_without_a_side(
    runs: Path, make: Callable[..., Study], noise: float, margin: str, per: str, why: str
) -> None:
    study = make(runs, 0.0, 8, noise)
    assert WITHIN.format(margin, per) in study.about["look"]
    assert line_of(study).startswith(f"within margin ({why}), ")
    page = SCRIPT["generated"]({"a": study})
    rows = [row for row in page.splitlines() if row.startswith("|") and "within margin" in row]
    assert len(rows) == 2  # among the findings and in its section
    for text in [*rows, line_of(study)]:
        assert f"within margin{': ' if text in rows else ' ('}{why}" in text
        assert not any(word in text for word in ONE_SIDED)
    first = study.found("finding", metric=PRIMARY, claim=FIRST)
    assert [effect["verdict"] for effect in first] == ["not tested"]


def test_a_slope_within_a_margin_that_rules_the_paper_s_size_out_says_so(runs: Path) -> None:
    why = "between -0.0016 and 0.0016 a doubling; the paper's size is ruled out"
    assert line_of(slope(runs, 0.0, 8, 0.003)).startswith(f"contradicts ({why}), 0.0003 (99 %: -0")


def test_a_difference_within_a_margin_has_this_verdict_in_the_table_of_arms(runs: Path) -> None:
    arms = {"micro": (0.0, {}), "global": (0.0, GLOBAL)}
    study = ruled_study(runs, "scope", arms, 8, 0.004, order=[KNOWN], margin=0.008)
    [effect] = study.found("difference", arm="global")
    assert effect["verdict"] == "cannot tell"
    [table] = SCRIPT["_arms"](study)
    assert "| within margin: between -0.008 and 0.008 (p 0." in table
    assert "cannot tell" not in table


def line_of(study: Study) -> str:
    """What the first lines say of its own question, as if its size were eligible."""
    _, lines, *_ = in_short({"a": replace(study, eligible=True)})
    [claim] = {of["claim"] for of in study.found("finding", metric=PRIMARY)} - {FIRST}
    [line] = lines.split(f"**{claim.removesuffix('.')}**\n")[1].splitlines()[:1]
    return line.partition("): ")[2]


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
    few.about["look"] = planned.about["look"]
    assert {each.name for each in distinct({"few": few, "planned": planned})} == {"few", "planned"}
    for effect in few.found("finding"):
        effect |= {"p": None, "verdict": "not tested"}  # what the other says of more runs
    assert {each.name for each in distinct({"few": few, "planned": planned})} == {"planned"}


def test_a_test_of_load_is_left_out_if_more_of_its_runs_are_tested(runs: Path) -> None:
    """A test of quality is not: it may have ended its study."""
    whole, few = (fake_study(runs / str(seeds), seeds) for seeds in (6, 4))
    for metric, kept in (("valid/nats", {"whole", "few"}), ("load/max_vio_micro", {"whole"})):
        for effect in [*whole.found("finding"), *few.found("finding")]:
            effect |= {"p": 0.01, "verdict": "agrees", "metric": metric}
        assert {each.name for each in distinct({"few": few, "whole": whole})} == kept


def test_what_is_not_tested_is_left_out_if_it_is_tested_on_more_runs(runs: Path) -> None:
    whole, few = (fake_study(runs / str(seeds), seeds) for seeds in (6, 4))
    assert {each.name for each in distinct({"few": few, "whole": whole})} == {"whole"}
    page = SCRIPT["generated"]({"whole": whole, "again": whole})
    assert page.split("### Compute-equivalent gain")[1].count("| `global` | `micro` |") == 1
    for run in few.runs:
        run["seed"] += 100
    assert {each.name for each in distinct({"few": few, "whole": whole})} == {"few", "whole"}

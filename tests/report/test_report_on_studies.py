"""Reports on the runs of a study: its plan, its baseline and its primary metric."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from moebench.errors import ConfigError, RecordError
from moebench.plans import PRIMARY, Job, Plan
from moebench.records import Record
from moebench.report import make_report
from moebench.report.read.studies import find_plans, plans_of_study
from moebench.seals import with_digest
from tests.report.examples import scopes, texts

Make = Callable[..., Record]


def test_the_baseline_is_given_or_planned_or_micro_or_first(
    runs: Path, run: Make, plan: Callable[..., Path]
) -> None:
    made = [run(runs, arm, sequences=size) for arm, size in (("global", 128), ("shuffled", 64))]

    def baseline(chosen: str | None = None) -> str:
        return make_report([runs], baseline=chosen).tables[0].baseline

    assert baseline() == "shuffled"
    made.append(run(runs, "micro"))
    assert baseline() == "micro"
    plan(runs, "scope", made, baseline="global")
    assert baseline() == "global"
    assert baseline("shuffled") == "shuffled"
    with pytest.raises(ConfigError, match="--baseline mikro: no such arm; there are global, micro"):
        baseline("mikro")


def test_a_planned_baseline_is_found_among_arms_that_share_its_label(
    runs: Path, run: Make, plan: Callable[..., Path]
) -> None:
    made = [run(runs, "global", science={"loss.balance": w}) for w in (0.2, 0.1)]
    plan(runs, "weight", made, baseline="global")
    assert make_report([runs]).tables[0].baseline == "global loss.balance=0.2"


def test_a_baseline_missing_from_one_table_is_replaced_there_with_notice(
    runs: Path, run: Make
) -> None:
    run(runs, "micro")
    run(runs, "global")
    run(runs, "micro", science={"seq_len": 256})
    report = make_report([runs], baseline="global")
    assert [table.baseline for table in report.tables] == ["global", "micro"]
    assert "global has no finished run in this table" in texts(report)


def test_a_study_takes_its_runs_and_tells_which_are_missing(
    runs: Path, run: Make, plan: Callable[..., Path]
) -> None:
    made = scopes(runs, run)
    run(runs, "other")
    waiting = run(runs, "none", state="waiting")
    path = plan(runs, "scope", [*made, waiting])
    (waiting.path / "config.yaml").unlink()
    for file in waiting.path.iterdir():
        file.unlink()
    for name in ("scope", path.parent.name):
        report = make_report([], study=name, runs_dir=runs)
        assert "other" not in report.render("table")
        assert "Study scope: What?" in report.render("table")
        assert [run.state for run in report.unfinished] == ["not begun"]
    with pytest.raises(RecordError, match=r"--study scop: no such study .* there are scope"):
        make_report([runs], study="scop", runs_dir=runs)


def test_only_the_plans_of_a_study_are_read(
    runs: Path, run: Make, plan: Callable[..., Path]
) -> None:
    """Also in a folder that was renamed; all plans where none is of that name."""
    made = scopes(runs, run)
    for name in ("scope", "other"):
        folder = plan(runs, name, made).parent
    folder.with_name("scope-0a1b2c").rename(folder.with_name("renamed"))
    for study, names in (("scope", "scope"), ("renamed", "scope"), ("other", "other")):
        assert [plan.name for plan in find_plans([runs], study)[0]] == [names]
    for study in ("nope", None):
        assert [plan.name for plan in find_plans([runs], study)[0]] == ["other", "scope"]


def test_grids_without_names_of_their_own_are_not_mixed(tmp_path: Path) -> None:
    def grid(name: str, *arms: str) -> Plan:
        jobs = [Job(n, f"{arm}-s0-0", arm, arm, 0, (), {}) for n, arm in enumerate(arms)]
        return Plan(name, "", "", arms[0], PRIMARY, tuple(jobs), folder=tmp_path / f"{name}-{arms}")

    one, more, other = (grid("sweep", *arms) for arms in ("a", "ab", "c"))
    assert plans_of_study("sweep", [one, more], [], tmp_path) == [one, more], "one grid, extended"
    error = f"^--study sweep: is the name of 3 grids; choose one of {one.slug}, {more.slug}, "
    with pytest.raises(RecordError, match=error):
        plans_of_study("sweep", [one, more, other], [], tmp_path)
    named = [grid("mine", "a"), grid("mine", "c")]
    assert plans_of_study("mine", named, [], tmp_path) == named


def test_a_study_may_have_another_primary_endpoint(
    runs: Path, run: Make, plan: Callable[..., Path]
) -> None:
    plan(runs, "load", scopes(runs, run, seeds=6), primary="load/max_vio_micro")
    report = make_report([runs])
    rows = {row["arm"]: row["metrics"] for row in report.to_dict()["rows"]}
    assert rows["global"]["load/max_vio_micro"]["p"] < 0.001
    assert "p" not in rows["global"]["valid/nats"]
    text = texts(report)
    assert "Primary endpoint load/max_vio_micro" in text
    assert "global: load/max_vio_micro is higher than micro's by 0.3" in text
    assert "8.038" not in text


def test_a_broken_plan_is_named(runs: Path, run: Make, plan: Callable[..., Path]) -> None:
    plan(runs, "scope", [run(runs, "micro")]).write_text('{"runs": [{}]}')
    assert "studies/scope-0a1b2c: plan.json: is not a plan (name is missing)" in texts(
        make_report([runs])
    )
    with pytest.raises(RecordError, match=r"name is missing\); restore it, or sweep again"):
        make_report([runs], study="scope", runs_dir=runs)


def test_a_plan_that_was_edited_is_reported_and_named(
    runs: Path, run: Make, plan: Callable[..., Path]
) -> None:
    path = plan(runs, "scope", [run(runs, "micro")])
    content = with_digest(json.loads(path.read_text()))
    path.write_text(json.dumps(content))
    assert "was edited" not in texts(make_report([runs], study="scope", runs_dir=runs))
    path.write_text(json.dumps(content | {"margin": 0.5}))
    text = texts(make_report([runs], study="scope", runs_dir=runs))
    assert "studies/scope-0a1b2c: plan.json: was edited after its sweep; restore it" in text


def test_costs_that_cannot_be_read_are_named_and_cost_the_report_nothing_else(
    runs: Path, run: Make, plan: Callable[..., Path]
) -> None:
    path = plan(runs, "scope", scopes(runs, run))
    sound = make_report([runs], study="scope", runs_dir=runs)
    path.with_name("cost.json").write_text("[")
    for study in (None, "scope"):
        report = make_report([runs], study=study, runs_dir=runs)
        assert "studies/scope-0a1b2c: cost.json: is not a table of costs (" in texts(report)
        assert report.tables == sound.tables
        assert not report.problems


def test_a_primary_that_no_run_holds_is_said(
    runs: Path, run: Make, plan: Callable[..., Path]
) -> None:
    plan(runs, "odd", scopes(runs, run), primary="valid/x")
    text = texts(make_report([runs]))
    assert "cannot tell: no run of global and micro holds valid/x" in text


@pytest.mark.parametrize("parted", [True, False])
def test_the_mean_of_the_baseline_and_its_twin_is_the_control_once_they_parted(
    runs: Path, run: Make, plan: Callable[..., Path], parted: bool
) -> None:
    rng, nats, made = np.random.default_rng(0), {}, []
    arms = {
        "micro": ({}, 0.0),
        "twin": ({"router.perturb": 1e-6}, 0.0),
        "global": ({"balance_bsz": 128}, -0.02),
        "shuffled": ({"scope": "shuffled", "balance_bsz": 128}, 0.01),
    }
    for seed in range(7):
        for arm, (science, effect) in arms.items():
            nats[arm, seed] = 1.6 + 0.1 * seed + effect + 0.005 * rng.normal()
            if arm == "twin" and not parted:
                nats[arm, seed] = nats["micro", seed] + 1e-7 * rng.normal()
            if (arm, seed) != ("twin", 6):
                made.append(run(runs, arm, seed, nats[arm, seed], science=science))
    plan(runs, "scope", made, baseline="micro", average_twin=True)
    report = make_report([runs])
    table = report.tables[0]
    assert table.control == (("micro", "twin") if parted else ("micro",))
    text, rows = texts(report), {row["arm"]: row["metrics"] for row in report.to_dict()["rows"]}
    assert ("differences are to the mean of micro and twin" in text) == parted
    assert ("twin has not parted from micro: differences are to micro alone" in text) != parted

    def of(arm: str, *others: str, seeds: int) -> tuple[np.ndarray, np.ndarray]:
        values = [[nats[each, seed] for seed in range(seeds)] for each in (arm, *others)]
        return np.array(values[0]), np.mean(values[1:], axis=0)

    # only seeds that have both count
    control, seeds = (("micro", "twin"), 6) if parted else (("micro",), 7)
    for arm in ("global", "shuffled"):
        own, against = of(arm, *control, seeds=seeds)
        estimate = table.decisions[arm].estimate
        assert estimate.value == pytest.approx(np.mean(own - against))
        assert estimate.p == pytest.approx(stats.ttest_rel(own, against).pvalue)
    [finding] = [one for one in report.to_dict()["findings"] if one["arms"] == ["global", "micro"]]
    assert finding["here"]["value"] == pytest.approx(table.decisions["global"].estimate.value)
    # the twin is compared with the baseline alone, and never tested
    own, against = of("twin", "micro", seeds=6)
    assert rows["twin"]["valid/nats"]["difference"] == pytest.approx(np.mean(own - against))
    assert rows["twin"]["valid/nats"]["p"] is None
    assert rows["global"]["valid/nats"]["p"] == finding["p"] < 0.05

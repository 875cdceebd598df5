"""`moebench sweep --register` and `--until-decided`: looks, a resumed study, hours, refusals.

Runs are not trained: a stand-in for the launcher's loop writes the record of each.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moebench.cli import deciding, hours
from moebench.plans import Job, Plan, read_plan
from moebench.records import Record
from tests.calls import Call

STUDY = ["sweep", "study=scope", "study.size=quick"]
RULE = ["--until-decided", "--most-seeds", "12"]


@pytest.fixture
def words(small: list[str]) -> list[str]:
    return [*STUDY, *small, *RULE]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands in for training: `effect` of global, in deviations; and the seeds of each call."""
    seen: dict[str, Any] = {"effect": -40.0, "seeds": [], "fails": False, "trigram": 100.0}

    def follow(launcher: Any, each: Callable[[], None] | None = None) -> None:
        seen["seeds"].append(sorted({job.seed for job in launcher.waiting}))
        for job in launcher.waiting:
            write(launcher.runs_dir, job, seen["effect"], seen["trigram"])
        if seen["fails"]:
            launcher.failed.append((launcher.waiting[0], "it failed"))

    monkeypatch.setattr(deciding, "follow", follow)
    monkeypatch.setattr("moebench.study.child.warm", lambda: None)
    monkeypatch.setattr("os.fsync", lambda _: None)
    return seen


def write(runs: Path, job: Job, effect: float, trigram: float) -> None:
    from moebench.config.compose import from_dict
    from moebench.config.identity import science

    rng = np.random.default_rng([job.seed, int(job.arm_hash, 16)])
    nats = 2 + 0.1 * job.seed + 0.01 * (rng.normal() + effect * (job.arm == "global"))
    record = Record(runs / job.run)
    data = {"content_hash": "0", "trigram_bits": trigram}
    record.begin(
        "seed: 0\n",
        {
            **{key: getattr(job, key) for key in ("run", "arm", "arm_hash", "seed")},
            "science": science(from_dict(job.config), "0"),
            "data": data,
        },
    )
    record.append({"step": 0, "valid/nats": 5.0})
    quality = {"valid/nats": nats, "valid/bits_per_byte": nats / np.log(2)}
    steps = {"steps": job.steps, "tokens": job.steps * 4096, "seconds": 1.0, "status": "done"}
    record.seal({**quality, **steps, "arm": job.arm, "seed": job.seed})
    record.set_status("done", step=job.steps, steps=job.steps)


def plan_file() -> Path:
    [path] = Path("runs").glob("studies/*/plan.json")
    return path


def only_plan() -> Plan:
    return read_plan(plan_file())


def registered(call: Call, *words: str) -> Path:
    """Register a study; the file of its plan."""
    assert call(*words, "--register").code == 0
    return plan_file()


def test_a_study_ends_at_the_first_look_that_decides(
    call: Call, trained: dict[str, Any], words: list[str]
) -> None:
    done = call(*words)
    assert (done.code, trained["seeds"]) == (0, [[0, 1, 2]])
    assert "stopping rule: 01-global-below-micro is looked at after 3 (0.5 %), 6 (1 %)" in done.err
    assert "3 of at most 12 seeds, tested at 0.5 %: the first finding is decided" in done.err
    assert "by hand" not in done.err
    plan = only_plan()
    assert (plan.most_seeds, len(plan.seeds)) == (12, 12)
    assert plan.typed is not None
    assert plan.typed[-3:] == ("--most-seeds", "12", "--until-decided")
    again = call(*words)
    assert (again.code, trained["seeds"]) == (0, [[0, 1, 2]]), "nothing more is trained"


def test_seeds_that_were_added_by_hand_move_no_end(
    call: Call, trained: dict[str, Any], words: list[str]
) -> None:
    assert call(*words).code == 0
    for job in only_plan().jobs:
        if job.seed == 3:
            write(Path("runs"), job, 0.0, 100.0)
    again = call(*words)
    assert (again.code, trained["seeds"]) == (0, [[0, 1, 2]]), "nothing more is trained"
    assert "look 1 of 3, 3 of at most 12 seeds, tested at 0.5 %: the first finding" in again.err
    assert "look 2 of 3" not in again.err
    assert "later seeds were added by hand, with which a report gives no verdict" in again.err


def test_a_study_that_is_too_early_for_a_verdict_says_why_it_stops(
    call: Call, trained: dict[str, Any], words: list[str]
) -> None:
    trained["trigram"] = 0.1
    done = call(*words)
    assert (done.code, trained["seeds"]) == (0, [[0, 1, 2]])
    assert "is worse than the 0.100 of a byte trigram. No verdict at this look, so" in done.err
    assert "no more seeds are trained; train longer (train.steps)." in done.err


def test_an_undecided_study_goes_on_to_its_last_look(
    call: Call, trained: dict[str, Any], words: list[str]
) -> None:
    trained["effect"] = 0.0
    assert call(*words).code == 0
    assert trained["seeds"] == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9, 10, 11]]
    report = json.loads(call("report", "--study", "scope", "--json").out)
    assert report["tables"][0]["rule"]["look"]["number"] == 3


def test_a_margin_ends_a_study_without_a_difference(
    call: Call, trained: dict[str, Any], words: list[str]
) -> None:
    trained["effect"] = 0.0
    done = call(*words, "--margin", "0.3")
    assert trained["seeds"] == [[0, 1, 2]]
    assert "no difference beyond the margin of 0.3 nats a byte, which ends the study" in done.err
    assert call(*words).code == 0, "the margin of the plan is kept"
    assert only_plan().margin == 0.3
    precise = call(*words, "--margin", "0.30000001")
    assert "--margin 0.30000001: scope-" in precise.err
    other = call(*words, "--margin", "0.2")
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
    call: Call, words: list[str], typed: list[str], error: str
) -> None:
    done = call(*words, *typed, "--register")
    assert (done.code, done.err.splitlines()[-1].startswith(f"error: {error}")) == (2, True)
    assert not [*Path("runs").glob("studies/*")]


def test_a_study_goes_on_where_it_stopped(
    call: Call, trained: dict[str, Any], words: list[str]
) -> None:
    trained.update(effect=0.0, fails=True)
    failed = call(*words)
    assert (failed.code, trained["seeds"]) == (3, [[0, 1, 2]])
    trained["fails"] = False
    assert call(*words).code == 0
    assert trained["seeds"][1:] == [[3, 4, 5], [6, 7, 8, 9, 10, 11]]


def test_a_damaged_plan_keeps_the_rule_of_its_preregistration(
    call: Call, trained: dict[str, Any], words: list[str], small: list[str]
) -> None:
    trained["effect"] = 0.0
    path = registered(call, *words, "--margin", "0.001")
    path.write_text("{")
    without = call(*STUDY, *small, "seed=range(12)")
    assert (without.code, trained["seeds"]) == (2, [])
    assert "was planned to end by rule; add --until-decided" in without.err
    assert call(*words).code == 0
    assert only_plan().margin == 0.001
    path.unlink()
    again = call(*words)
    assert again.code == 0
    assert "plan.json: is not a plan (" in again.err
    assert "the sweep writes it again by prereg.json" in again.err
    assert (only_plan().most_seeds, only_plan().margin) == (12, 0.001)
    path.write_text("{")
    path.with_name("prereg.json").write_text("{")
    refused = call(*words)
    assert (refused.code, path.read_text()) == (2, "{")
    assert "72 runs have begun before; restore the plan, or take seeds" in refused.err
    told = call(*STUDY, *small, "seed=range(12)", "--dry-run").err
    assert "the sweep writes it again, without a stopping rule" in told


def test_a_plan_whose_order_was_edited_by_hand_is_written_again_as_registered(
    call: Call, trained: dict[str, Any], words: list[str]
) -> None:
    path = registered(call, *words)
    order = only_plan().order
    text = path.read_text()
    path.write_text(text.replace(f'"{order[0]}"', f'"{order[1]}"', 1))
    again = call(*words, "--register")
    assert (again.code, "keeps the order" in again.err) == (0, False)
    assert "was edited after its sweep" in again.err
    assert call(*words).code == 0
    assert only_plan().order == order


def test_an_edited_plan_still_tells_that_it_was_to_end_by_rule(
    call: Call, trained: dict[str, Any], words: list[str], small: list[str]
) -> None:
    trained["effect"] = 0.0
    path = registered(call, *words, "--margin", "0.001")
    path.with_name("prereg.json").unlink()
    path.write_text(path.read_text().replace("0.001", "0.002"))
    without = call(*STUDY, *small, "seed=range(12)", "--dry-run")
    assert (without.code, "was planned to end by rule" in without.err) == (2, True)
    told = call(*words, "--dry-run")
    assert told.code == 0
    assert "edited after its sweep; the sweep writes it again, as it is typed" in told.err
    assert "no margin" in told.out


def test_a_sweep_says_in_what_it_is_not_as_registered(
    call: Call, words: list[str], small: list[str]
) -> None:
    plain = [*STUDY, *small, "seed=range(12)"]
    path = registered(call, *plain).with_name("prereg.json")
    told = call(*words, "--margin", "0.1", "--dry-run").err
    assert "otherwise in its most seeds of the stopping rule, margin; the report says so" in told
    assert "otherwise" not in call(*plain, "--dry-run").err
    path.write_text("{")
    assert "prereg.json: is no preregistration (" in call(*plain, "--dry-run").err


def test_a_plan_of_an_earlier_version_is_not_called_edited(
    call: Call, words: list[str], small: list[str]
) -> None:
    plain = [*STUDY, *small, "seed=range(12)"]
    path = registered(call, *plain)
    path.with_name("prereg.json").unlink()
    old = json.loads(path.read_text())
    del old["sha256"]
    path.write_text(json.dumps(old))
    for typed in (plain, words):
        told = call(*typed, "--dry-run")
        assert (told.code, "edited" in told.err) == (0, False)


def test_another_order_of_findings_is_refused_once_runs_have_begun(
    call: Call, trained: dict[str, Any], words: list[str]
) -> None:
    trained["effect"] = 0.0
    assert call(*words, "--register").code == 0
    assert call(*words, "study.order=[02-shuffled-below-micro]", "--dry-run").code == 0
    assert call(*words).code == 0
    seen = len(trained["seeds"])
    other = call(*words, "study.order=[02-shuffled-below-micro]")
    assert (other.code, len(trained["seeds"])) == (2, seen)
    assert "--until-decided with a change of its order of findings: 72 runs have begun" in other.err
    assert only_plan().order[0] == "01-global-below-micro"


def test_a_study_keeps_the_order_of_findings_that_it_was_planned_with(
    call: Call, trained: dict[str, Any], words: list[str], small: list[str]
) -> None:
    """A preset may begin with another finding since."""
    order = "study.order=[02-shuffled-below-micro,01-global-below-micro]"
    assert call(*words, order, "--register").code == 0
    again = call(*words, "--register")
    assert again.code == 0, "it is registered already"
    assert "was planned with, 02-shuffled-below-micro, 01-global-below-micro, and not" in again.err
    done = call(*words)
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


def test_hours_end_at_a_whole_look(
    call: Call, trained: dict[str, Any], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Estimate:
        def makespan(self, jobs: list[Job]) -> Any:
            return type("Range", (), {"middle": 60.0 * len({job.seed for job in jobs})})

    trained["effect"] = 0.0
    monkeypatch.setattr(hours, "budget", lambda _: Estimate())
    monkeypatch.setattr(hours.Timer, "took", lambda *_: None)
    short = call(*words, "--hours", "0.04")
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


def test_what_was_registered_is_trained_later(
    call: Call, trained: dict[str, Any], words: list[str], small: list[str]
) -> None:
    made = call(*words, "--margin", "0.001", "--register")
    assert (made.code, trained["seeds"]) == (0, [])
    [file] = Path("runs").glob("studies/*/prereg.json")
    content = json.loads(file.read_text())
    assert f"prereg.json: sha256 {content['sha256']}" in made.err.replace("\n", " ")
    assert "publish this hash before the first run" in made.err
    again = json.loads(call(*words, "--register", "--json").out)
    assert (Path(again["path"]), again["sha256"]) == (file, content["sha256"])
    assert content["seeds"] == list(range(12))
    assert [look["seeds"] for look in content["looks"]] == [3, 6, 12]
    assert (content["margin"], content["margin_from"]) == (0.001, "typed")
    assert content["order"][0] == "01-global-below-micro"
    assert content["arms"].keys() == {job.arm_hash for job in only_plan().jobs}
    assert "train.steps=6" in content["overrides"]
    assert call(*words).code == 0
    assert trained["seeds"] == [[0, 1, 2]]
    table = json.loads(call("report", "--study", "scope", "--json").out)["tables"][0]
    assert table["registered"]["sha256"] == content["sha256"]
    assert [d.partition(":")[0] for d in table["registered"]["deviations"]] in ([], ["code"])
    late = call(*STUDY, *small, "seed=range(0,12)", "--register")
    assert late.code == 2
    assert re.search(r"was planned to end by rule; add --until-decided", late.err)


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


def test_seeds_that_are_added_by_hand_are_said_to_cost_a_verdict(
    call: Call, words: list[str], small: list[str]
) -> None:
    slug = registered(call, *words).parent.name
    told = f"{slug}: ends by rule, and has no verdict in a report with other seeds"
    assert told in call(*STUDY, *small, "seed=range(0,13)", "--register").err
    assert told not in call(*STUDY, *small, "seed=range(0,6)", "--register").err, "none is added"
    grid = ["sweep", *small, "scope=micro,global", "seed=12", "--register"]
    assert told in call(*grid, "loss.balance=0.05").err, "a report of all runs has both"
    assert told not in call(*grid, "loss.balance=0.5").err, "these are other arms"


def test_seeds_of_later_looks_are_said_to_cost_a_verdict_at_an_earlier_one(
    call: Call, trained: dict[str, Any], words: list[str], small: list[str]
) -> None:
    assert call(*words).code == 0
    slug, told = (
        plan_file().parent.name,
        "may end by rule at its look at 3 seeds; it has no verdict",
    )
    assert f"{slug}: {told}" in call(*STUDY, *small, "seed=range(0,4)", "--dry-run").err
    assert told not in call(*STUDY, *small, "seed=range(0,3)", "--dry-run").err


def test_seeds_that_somebody_may_have_seen_are_refused(
    call: Call, trained: dict[str, Any], words: list[str], small: list[str]
) -> None:
    trained["effect"] = 0.0
    plan = json.loads(call(*STUDY, *small, "seed=3", "--dry-run", "--json").out)
    run = plan["runs"][0]["run"]
    Record(Path(run)).begin("seed: 3\n", {})
    found = call(*words)
    assert (found.code, trained["seeds"]) == (2, [])
    assert f"--until-decided: {Path(run).name} has begun before; restore runs/stud" in found.err
    assert "plan.json if it was lost, or take seeds that nobody has seen" in found.err

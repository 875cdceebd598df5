"""Reports on studies that end by rule, and on preregistered ones."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moebench.errors import ConfigError, RecordError
from moebench.plans import read_plan
from moebench.records import Record, find_records
from moebench.registration import FILE, read, register
from moebench.report import Report, make_report
from moebench.report.show.power import lines
from tests.report.examples import texts

Make = Callable[..., Record]
ORDER = ["01-global-below-micro", "02-shuffled-below-micro"]
MICRO = {"balance_bsz": 4}
GLOBAL, SHUFFLED = {"balance_bsz": 128}, {"balance_bsz": 128, "scope": "shuffled"}


@pytest.fixture
def study(runs: Path, run: Make, plan: Callable[..., Path]) -> Callable[..., Path]:
    """A study of at most 12 seeds, whose global is lower by some deviations of a difference."""

    def made(
        effect: float,
        seeds: int = 3,
        *,
        third: tuple[str, float, dict[str, Any]] | None = None,
        most: int = 12,
        twin: bool = False,
        **more: Any,
    ) -> Path:
        rng, records = np.random.default_rng(5), []
        arms: list[tuple[str, float, dict[str, Any]]] = [
            ("micro", 0.0, MICRO),
            ("global", effect, GLOBAL),
            third or ("shuffled", effect, SHUFFLED),
        ]
        if twin:
            arms.append(("micro perturb=1e-06", 0.0, MICRO | {"router.perturb": 1e-6}))
        for seed in range(most):
            block = 1.6 + 0.1 * rng.normal()
            for arm, shift, science in arms:
                nats = block + 0.01 * (shift + rng.normal() / np.sqrt(2))
                record = run(runs, arm, seed, float(nats), science=science, rows=[])
                records.append(record)
        rule = {"most_seeds": most, "order": ORDER, "baseline": "micro", **more}
        path = plan(runs, "scope", records, **{k: v for k, v in rule.items() if v is not None})
        for record in records:
            if record.manifest()["seed"] >= seeds:
                remove(record)
        return path

    return made


def remove(record: Record) -> None:
    for file in sorted(record.path.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    record.path.rmdir()


def report(runs: Path) -> tuple[Report, dict[str, Any]]:
    made = make_report([runs], study="scope", runs_dir=runs)
    return made, made.to_dict()


def findings(content: dict[str, Any]) -> list[tuple[str, str]]:
    return [(each["verdict"], each["reason"]) for each in content["findings"]]


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


def arm_of(record: Record) -> str:
    return record.manifest()["arm"]


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


def registered(path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Register a study as if its runs had not begun."""
    monkeypatch.setattr("moebench.registration.Record.exists", lambda _: False)
    monkeypatch.setattr("moebench.registration.commit", lambda: {"commit": None, "dirty": None})
    plan = read_plan(path)
    made = register(plan, runs).path
    monkeypatch.undo()
    monkeypatch.setattr("os.fsync", lambda _: None)
    path.parent.rename(path.parent.with_name("old"))
    (runs / "studies" / "old" / "plan.json").unlink()
    return made


def test_a_report_prints_the_hash_of_what_was_registered(
    runs: Path, study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = registered(study(-40.0, margin=0.01), runs, monkeypatch)
    made, content = report(runs)
    found = content["tables"][0]["registered"]
    assert found["sha256"] == json.loads(file.read_text())["sha256"]
    assert found["deviations"] == ()
    assert f"sha256 {found['sha256'][:12]}; nothing deviates from it." in texts(made)
    assert f"sha256 {found['sha256'][:12]}" in made.page("again")


def test_a_report_says_what_deviates(
    runs: Path, run: Make, study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = registered(study(-40.0, 6, margin=0.01), runs, monkeypatch)
    run(runs, "domain", 0, 1.6, science={"scope": "domain"}, git={"commit": "f" * 40})
    run(runs, "micro", 77, 1.6, science=MICRO)
    plan = json.loads(file.with_name("plan.json").read_text())
    changed = plan | {"order": ORDER[:1], "margin": 0.02, "most_seeds": 24, "size": "gpu"}
    file.with_name("plan.json").write_text(json.dumps(changed))
    content = json.loads(file.read_text()) | {"date": "2999-01-01T00:00:00+00:00"}
    file.write_text(json.dumps(content))
    (about,) = make_report([runs], runs_dir=runs).to_dict()["tables"]
    said = about["registered"]["deviations"]
    assert [each.partition(":")[0] for each in said] == [
        "the file was changed after it was written",
        "size",
        "order of findings",
        "most seeds of the stopping rule",
        "margin",
        "arms that are not registered",
        "seeds that are not registered",
        "code",
    ]
    assert "seeds that are not registered: 77" in said
    assert f"order of findings: {ORDER[0]} (registered: {', '.join(ORDER)})" in said


@pytest.mark.parametrize("content", ["{", "[]", '{"study": "scope"}', '{"seeds": [[1]]}'])
def test_a_report_goes_on_without_a_damaged_registration(
    runs: Path, study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    file = registered(study(-40.0, margin=0.01), runs, monkeypatch)
    file.write_text(content)
    made, about = report(runs)
    [said] = about["tables"][0]["registered"]["deviations"]
    assert said.startswith("prereg.json is damaged (")
    assert f"Preregistered, but {said}." in texts(made)
    assert [verdict for verdict, _ in findings(about)[:2]] == ["agrees", "agrees"]
    assert "is damaged" in made.page("again")


def test_registered_runs_without_results_are_told(
    runs: Path, run: Make, study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    registered(study(-40.0, margin=0.01, twin=True), runs, monkeypatch)

    def deviations() -> list[str]:
        about = make_report([runs], runs_dir=runs).to_dict()["tables"]
        [found] = [each["registered"] for each in about if each["registered"]]
        return list(found["deviations"])

    other = {"science": {"model.top_k": 4}, "rows": []}  # of another table
    run(runs, "micro", 77, 1.6, **other)
    assert deviations() == []
    for record in [record for record in find_records(runs) if arm_of(record).endswith("1e-06")]:
        remove(record)
    [path] = runs.glob("studies/*/plan.json")
    plan = json.loads(path.read_text())
    plan["runs"] = [run for run in plan["runs"] if not run["arm"].endswith("1e-06")]
    path.write_text(json.dumps(plan))
    assert [each.partition(":")[0] for each in deviations()] == ["arms without results"]
    [last] = [r for r in find_records(runs) if arm_of(r) == "global" and r.name.endswith("-s2")]
    (last.path / "summary.json").unlink()
    last.set_status("failed", step=1, steps=2, reason="it failed")
    [_, lacking] = deviations()
    assert lacking.startswith("runs without results: ")
    assert lacking.endswith("seed=2")


def test_what_is_still_to_come_is_no_deviation(
    runs: Path, study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    registered(study(-1.0, 5, margin=0.01), runs, monkeypatch)
    (about,) = report(runs)[1]["tables"]
    assert about["interim"]["left"] == {"not begun": 3}
    assert about["registered"]["deviations"] == ()


def test_a_study_is_registered_before_its_first_run_alone(
    runs: Path, study: Callable[..., Path]
) -> None:
    plan = read_plan(study(0.0, 1))
    with pytest.raises(
        ConfigError, match=r"--register: 3 runs have begun before; take seeds that nobody has seen"
    ):
        register(plan, runs)
    tuning = replace(plan, jobs=tuple(replace(job, seed=1000 + job.seed) for job in plan.jobs))
    with pytest.raises(ConfigError, match=r"seed=1000: seeds from 1000 on are for choices"):
        register(tuning, runs)
    assert not list(runs.glob(f"studies/*/{FILE}"))


def test_a_study_is_registered_once(runs: Path, study: Callable[..., Path]) -> None:
    plan = read_plan(study(0.0, 0, margin=0.01))
    first = register(plan, runs)
    assert register(plan, runs).digest == first.digest
    with pytest.raises(ConfigError, match=r"is registered with another margin; take other seeds"):
        register(replace(plan, margin=0.02), runs)
    first.path.write_text(first.path.read_text().replace("0.01", "0.02", 1))
    assert not read(first.path).sound
    with pytest.raises(ConfigError, match=r"is registered with another margin"):
        register(plan, runs)
    first.path.write_text("{}")
    with pytest.raises(RecordError, match=r"is no preregistration \(study is missing\)"):
        register(plan, runs)


@pytest.mark.parametrize(
    ("edited", "wrong"),
    [
        ({"seeds": [[1]]}, r"seeds\[0\] is not a whole number"),
        ({"overrides": [{}]}, r"overrides\[0\] is not a text"),
        ({"overrides": [1, "a"]}, r"overrides\[0\] is not a text"),
        ({"date": "\ud800"}, "date is not a text"),
        ({"sha256": "\ud800"}, "sha256 is not a SHA-256"),
        ({"order": [{}]}, r"order\[0\] is not a text"),
        ({"most_seeds": 3}, "most_seeds is not a whole number"),
        ({"margin": "0.1"}, "margin is not a finite number"),
    ],
)
def test_what_is_wrong_in_a_registration_is_named(
    tmp_path: Path, edited: dict[str, Any], wrong: str
) -> None:
    texts = dict.fromkeys(("study", "date", "size", "baseline", "primary"), "2026-01-01")
    lists: dict[str, Any] = {key: [] for key in ("overrides", "secondary", "order")}
    rest = {"seeds": [0], "arms": {}, "average_twin": False, "most_seeds": None, "margin": None}
    sound = {**texts, **lists, **rest}
    path = tmp_path / FILE
    path.write_text(json.dumps(sound))
    assert read(path).seeds == [0]
    path.write_text(json.dumps(sound | edited))
    with pytest.raises(RecordError, match=rf"prereg\.json: is no preregistration \({wrong}"):
        read(path)


def test_seeds_are_told_by_the_noise_of_twins_alone(runs: Path, study: Callable[..., Path]) -> None:
    study(-3.0, 12, twin=True)
    made, _ = report(runs)
    noise, each, needed = lines(made.tables, 0.01)
    assert "(12 A/A pairs)" in noise
    assert 0.007 < float(noise.split(": ")[1].split()[0]) < 0.014
    assert each.startswith("--until-decided resolves, by most seeds: 12: 0.0")
    assert needed.startswith("0.01 nats a byte: --most-seeds ")


def test_without_twins_the_noise_is_not_known(runs: Path, study: Callable[..., Path]) -> None:
    study(0.0)
    assert lines(report(runs)[0].tables, 0.01)[0].startswith(
        "the noise is not known, since no A/A twins have finished"
    )

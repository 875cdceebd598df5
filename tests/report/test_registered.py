"""Reports on preregistered studies, and how a study is registered."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moebench.errors import ConfigError, RecordError
from moebench.plans import read_plan
from moebench.records import find_records
from moebench.registration import FILE, read, register
from moebench.report import make_report
from moebench.report.show.power import lines
from tests.report.examples import texts
from tests.report.ruled import (
    MICRO,
    ORDER,
    Make,
    arm_of,
    findings,
    remove,
    report,
)


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
    with pytest.raises(ConfigError, match=r"is registered otherwise in its margin; take other"):
        register(replace(plan, margin=0.02), runs)
    first.path.write_text(first.path.read_text().replace("0.01", "0.02", 1))
    assert not read(first.path).sound
    with pytest.raises(ConfigError, match=r"was changed since; restore it, or take other seeds"):
        register(plan, runs)
    first.path.write_text("{}")
    with pytest.raises(RecordError, match=r"is no preregistration \(study is missing\); restore"):
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

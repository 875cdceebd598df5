"""A study that runs or was stopped: at which evaluation its arms are compared, and how."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from moebench.errors import RecordError
from moebench.records import Record
from moebench.report import Report, make_report
from tests.report.conftest import SCIENCE

Make = Callable[..., Record]
NOT_BEGUN = 99  # a number of steps that stands for a run that is planned alone


def study(
    runs: Path, run: Make, plan: Callable[..., Path], arms: dict[str, Sequence[int]]
) -> dict[str, list[Record]]:
    """A study of arms whose seeds have made these of 400 steps, evaluated at every 100th."""
    made: dict[str, list[Record]] = {}
    for place, (arm, steps_of_seeds) in enumerate(arms.items()):
        for seed, steps in enumerate(steps_of_seeds):
            rows: list[dict[str, Any]] = [
                {
                    "step": step,
                    "valid/nats": 3 - step / 400 + 0.1 * place + 0.01 * seed,
                    "valid/bits_per_byte": 1.0,
                    "load/max_vio_micro": 1.0 + place,
                }
                for step in range(0, steps + 1, 100)
            ]
            state = "done" if steps == 400 else "stopped"
            nats = 2 + 0.1 * place + 0.01 * seed
            made.setdefault(arm, []).append(
                run(runs, arm, seed, nats, state=state, rows=rows, science={"global_bsz": 32})
            )
    plan(runs, "scope", [record for records in made.values() for record in records], baseline="a")
    for arm, steps_of_seeds in arms.items():
        for record, steps in zip(made[arm], steps_of_seeds, strict=True):
            if steps == NOT_BEGUN:
                for file in sorted(record.path.rglob("*")):
                    file.unlink()
                record.path.rmdir()
    return made


def compared(report: Report) -> tuple[Any, ...]:
    (about,) = report.to_dict()["tables"]
    meanwhile = about["interim"]
    assert meanwhile is not None
    return meanwhile["step"], meanwhile["seeds"], meanwhile["waiting"]


def test_arms_are_compared_at_the_last_evaluation_that_all_seeds_share(
    runs: Path, run: Make, plan: Callable[..., Path]
) -> None:
    study(runs, run, plan, {"a": [300] * 6, "b": [200, 300, 300, 300, 200, 300]})
    report = make_report([runs], study="scope")
    assert compared(report) == (200, (*range(6),), ())
    found = report.to_dict()
    row = found["rows"][1]["metrics"]
    assert row["valid/nats"]["difference"] == pytest.approx(0.1)
    assert row["valid/nats"]["mean"] == pytest.approx(2.6 + 0.025)
    assert row["load/max_vio_micro"]["difference"] == pytest.approx(1)
    assert found["tables"][0]["tokens"] == 200 * 32 * SCIENCE["seq_len"]
    assert [state["state"] for state in found["unfinished"]] == ["stopped"] * 12
    text = "\n".join(line.plain for line in report.brief())
    words = " ".join(text.split())
    assert "Interim: the study has not ended (12 stopped)." in words
    assert "Compared at step 200 of 400, the last evaluation that all arms share in" in words


def test_an_interim_report_holds_no_p_value_however_many_seeds_have_ended(
    runs: Path, run: Make, plan: Callable[..., Path]
) -> None:
    study(runs, run, plan, {"a": [400] * 8, "b": [*[400] * 7, 100]})
    report = make_report([runs], study="scope")
    assert compared(report) == (400, (*range(7),), (7,))
    text = report.render() + report.render("md") + "\n".join(line.plain for line in report.brief())
    assert "p 0." not in text
    assert "p <" not in text
    found = report.to_dict()
    assert found["rows"][1]["metrics"]["valid/nats"]["p"] is None
    assert '"p": 0' not in json.dumps(found)
    assert "Compared at the end of seeds 0 to 6; seed 7 has not come so far." in text


def test_a_seed_that_has_just_begun_waits_until_it_adds_more_than_it_takes(
    runs: Path, run: Make, plan: Callable[..., Path]
) -> None:
    made = study(runs, run, plan, {"a": [400, 400, 300], "b": [400, 400, 100]})
    assert compared(make_report([runs], study="scope")) == (400, (0, 1), (2,))
    made["b"][2].append({"step": 200, "valid/nats": 2.4})
    assert compared(make_report([runs], study="scope")) == (200, (0, 1, 2), ())


def test_a_seed_counts_when_all_its_arms_have_begun(
    runs: Path, run: Make, plan: Callable[..., Path]
) -> None:
    study(runs, run, plan, {"a": [300, 300], "b": [100, NOT_BEGUN]})
    report = make_report([runs], study="scope")
    assert compared(report) == (100, (0,), (1,))
    assert report.to_dict()["tables"][0]["interim"]["left"] == {"stopped": 3, "not begun": 1}


def test_a_study_without_any_evaluation_has_nothing_to_report(
    runs: Path, run: Make, plan: Callable[..., Path]
) -> None:
    study(runs, run, plan, {"a": [0], "b": [0]})
    with pytest.raises(RecordError, match=r"no finished run .*2 stopped"):
        make_report([runs], study="scope")


def test_a_run_of_no_study_does_not_hold_up_what_is_finished(runs: Path, run: Make) -> None:
    rows = [{"step": 100, "valid/nats": 2.0}]
    for seed in range(2):
        run(runs, "a", seed)
        run(runs, "b", seed)
    run(runs, "c", 0, state="stopped", rows=rows)
    (about,) = make_report([runs]).to_dict()["tables"]
    assert about["interim"] is None


def test_a_failed_run_does_not_keep_a_study_open(
    runs: Path, run: Make, plan: Callable[..., Path]
) -> None:
    records = [run(runs, "a", 0), run(runs, "b", 0), run(runs, "c", 0, state="failed")]
    plan(runs, "scope", records)
    (about,) = make_report([runs], study="scope").to_dict()["tables"]
    assert about["interim"] is None


def test_runs_that_the_reader_leaves_out_have_begun_and_keep_a_study_open_until_they_end(
    runs: Path, run: Make, plan: Callable[..., Path]
) -> None:
    made = study(runs, run, plan, {"a": [400, 400], "b": [400, 400], "c": [400, 400]})
    kept = [record.path for arm in "ab" for record in made[arm]]

    def reports() -> list[Report]:
        return [
            make_report([runs], study="scope", where=["arm=a,b"], runs_dir=runs),
            make_report([runs], where=["seed=0"], runs_dir=runs),
            make_report(kept, runs_dir=runs),
        ]

    for report in reports():
        assert report.tables[0].interim is None
        assert report.unfinished == ()
    (made["c"][1].path / "summary.json").unlink()
    made["c"][1].set_status("stopped", step=100, steps=400)
    for report in reports():
        meanwhile = report.tables[0].interim
        assert meanwhile is not None
        assert meanwhile.left == {"stopped": 1}


def test_at_a_chosen_step_the_finished_seeds_are_named(
    runs: Path, run: Make, plan: Callable[..., Path]
) -> None:
    study(runs, run, plan, {"a": [400, 400, 300], "b": [400, 400, 200]})
    report = make_report([runs], study="scope", at=100)
    assert compared(report) == (100, (0, 1), (2,))
    told = "Compared at step 100 of 400, as asked, in seeds 0 and 1; seed 2 has not ended."
    assert told in " ".join(report.render().split())

"""Records into a frame: nothing unread is silent, nothing unlike is put together."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moebench.disk import write_json
from moebench.errors import ConfigError, RecordError
from moebench.lock import hold
from moebench.records import Record
from moebench.report import make_report
from moebench.report.read.frame import load
from moebench.report.read.unfinished import unfinished
from moebench.study.status import current_status
from tests.report.examples import by_metric

Make = Callable[..., Record]


def test_one_row_a_run_and_metric(runs: Path, run: Make) -> None:
    run(runs, "micro", 0, 1.6, metrics={"load/entropy": 0.9})
    run(runs, "global", 1, 1.5, sequences=128)
    frame = load([runs])
    assert frame.problems == ()
    assert set(frame.runs["arm"]) == {"micro", "global"}
    assert len(frame.metrics) == 4 + 3
    row = frame.metrics[frame.metrics["metric"] == "load/entropy"].iloc[0]
    assert (row["arm"], row["seed"], row["value"]) == ("micro", 0, 0.9)
    (first,) = [row for row in frame.rows() if row["arm"] == "global"]
    assert (first["sequences"], first["group_tokens"], first["state"]) == (128, 16384, "done")
    assert first["tokens"] == 400 * 128 * 128


def test_a_run_itself_is_a_root(runs: Path, run: Make) -> None:
    assert load([run(runs, "micro").path]).runs["arm"].tolist() == ["micro"]


def test_unfinished_runs_keep_their_state_and_have_no_metrics(runs: Path, run: Make) -> None:
    run(runs, "micro", state="failed", reason="the loss is not finite\x1b[31m")
    frame = load([runs])
    (row,) = frame.rows()
    assert (row["state"], row["step"], row["steps"]) == ("failed", 120, 400)
    assert row["reason"] == "the loss is not finite�[31m"
    assert frame.metrics.empty


def test_the_line_of_a_stopped_run_names_it_once_and_keeps_the_cause(runs: Path, run: Make) -> None:
    record = run(runs, "micro", state="running")
    why = f"{record.path}: stopped by SIGTERM at step 120; --resume continues"
    record.set_status("stopped", step=120, steps=400, reason=why)
    (stopped,) = unfinished(load([runs]), [])
    about = f"{record.name}: stopped at step 120 of 400"
    assert str(stopped) == f"{about}: stopped by SIGTERM at step 120; --resume continues"


def test_a_run_without_a_sign_of_life_says_so(runs: Path, run: Make) -> None:
    record = run(runs, "micro", state="running")
    assert load([runs]).rows()[0]["reason"] == ""
    for seconds, words in ((200, "3 min"), (9000, "2 h"), (200_000, "2 days")):
        record.set_status("running", step=120, heartbeat=time.time() - seconds)
        (row,) = load([runs]).rows()
        assert (row["state"], row["reason"]) == ("stopped", f"no sign of life for {words}")


def test_a_run_is_running_as_long_as_a_process_holds_its_lock(runs: Path, run: Make) -> None:
    """Its heartbeat does not matter then: a step may take long."""
    record = run(runs, "micro", state="running")
    record.set_status("running", step=120, heartbeat=1e9)
    with hold(record):
        assert load([runs]).rows()[0]["state"] == "running"
        lock = runs / ".locks" / f"{record.name}.lock"
        owner = json.loads(lock.read_text())
    lock.write_text(json.dumps({**owner, "pid": 2**22 + 1}))  # as a killed process leaves it
    (row,) = load([runs]).rows()
    assert (row["state"], row["reason"]) == ("stopped", "its process ended without a message")
    assert current_status(record)["state"] == row["state"]


def _text(name: str, text: str) -> Callable[[Record], object]:
    return lambda record: (record.path / name).write_text(text)


def _manifest(*, sealed: bool = True, **more: object) -> Callable[[Record], None]:
    def damage(record: Record) -> None:
        about = {k: v for k, v in (record.manifest() | more).items() if v is not ...}
        write_json(record.path / "manifest.json", about)
        if sealed:  # a stranger can seal what he likes
            record.seal(record.summary())

    return damage


def _better(record: Record) -> None:
    path = record.path / "summary.json"
    path.write_text(path.read_text().replace("1.6", "1.5"))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_text("summary.json", "{"), "summary.json: is not a JSON object"),
        (_text("manifest.json", "[]"), "manifest.json: was changed after the run"),
        (_manifest(schema_version=9), "is a record of version 9"),
        (_manifest(arm=...), "arm is missing"),
        (_manifest(arm=["x"]), "arm is not a text"),
        (_manifest(arm=""), "arm is not a text"),
        (_manifest(seed="0"), "seed is not a whole number from 0 to 4294967295"),
        (_manifest(seed=10**19), "seed is not a whole number from 0 to 4294967295"),
        (_manifest(domains=5), "domains is not a list"),
        (_manifest(science=3), "science is not an object"),
        (_manifest(science={}), "science.global_bsz is missing"),
        (_manifest(sealed=False, precision="fp64"), "manifest.json: was changed after the run"),
        (_better, "summary.json: was changed after the run"),
        (lambda record: (record.path / "config.yaml").unlink(), "config.yaml: is missing"),
        (lambda record: (record.path / "manifest.json").unlink(), "manifest.json: is missing"),
    ],
)
def test_a_damaged_record_is_named_and_left_out(
    runs: Path, run: Make, damage: Callable[[Record], object], reason: str
) -> None:
    run(runs, "global")
    damaged = run(runs, "micro")
    damage(damaged)
    frame = load([runs])
    assert frame.runs["arm"].tolist() == ["global"]
    (problem,) = frame.problems
    assert problem.run == damaged.name
    assert reason in problem.reason
    assert str(runs) not in problem.reason


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("routing/step-400.npz", lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x")),
        ("routing/step-400.npz", lambda path: path.unlink()),
        ("checkpoints/step-400/large", lambda path: path.unlink()),
        ("checkpoints/step-400/large", lambda path: path.write_bytes(b"short")),
        ("checkpoints/step-400/large", lambda path: path.write_bytes(bytes(2**17 - 1) + b"x")),
    ],
)
def test_damage_to_files_that_the_report_does_not_read_is_named(
    runs: Path, run: Make, name: str, damage: Callable[[Path], object]
) -> None:
    record = run(runs, "micro", counts=np.ones((2, 2, 4), int))
    large = record.path / "checkpoints" / "step-400" / "large"
    large.parent.mkdir(parents=True)
    large.write_bytes(bytes(2**17))
    record.seal(record.summary())
    assert load([runs]).damaged == ()
    damage(record.path / name)
    frame = load([runs])
    assert (frame.runs["arm"].tolist(), frame.problems) == (["micro"], ())
    [problem] = frame.damaged
    assert problem.reason.startswith(f"{name}: ")
    assert problem.reason.endswith("; see moebench verify")
    report = make_report([runs])
    assert f"{record.name}: {name}: " in report.render()
    assert name in "".join(map(str, report.brief()))
    assert name in json.dumps(report.to_dict())


def test_a_value_that_is_not_finite_is_named(runs: Path, run: Make) -> None:
    record = run(runs, "micro", nats=None, metrics={"valid/nats": None, "load/entropy": 1.0})
    frame = load([runs])
    assert frame.metrics["metric"].tolist() == ["load/entropy"]
    assert frame.problems == ((record.name, "no finite value of valid/nats"),)


def test_a_copy_of_a_run_counts_once(runs: Path, tmp_path: Path, run: Make) -> None:
    run(runs, "micro", state="stopped")
    finished = run(tmp_path / "copy", "micro")
    frame = load([runs, tmp_path / "copy", runs])
    assert frame.runs["state"].tolist() == ["done"]
    assert [problem.run for problem in frame.problems] == [finished.name]
    assert "is the same run as" in frame.problems[0].reason


@pytest.mark.parametrize("ended", ["2026-01-02", "2026-01-04"])
def test_of_two_results_of_one_run_the_last_is_taken_and_both_are_named(
    runs: Path, tmp_path: Path, run: Make, ended: str
) -> None:
    for root, nats, end in ((runs, 1.6, "2026-01-03"), (tmp_path / "copy", 1.7, ended)):
        record = run(root, "micro", nats=nats)
        record.seal({**_values(record), "end": end})
    frame = load([runs, tmp_path / "copy"])
    values = by_metric(frame)
    assert values["valid/nats"] == (1.6 if ended == "2026-01-02" else 1.7)
    (problem,) = frame.problems
    assert problem.reason.endswith("which is taken and ended with other results")


def test_a_copy_that_was_slower_has_no_other_results(runs: Path, tmp_path: Path, run: Make) -> None:
    for root, seconds in ((runs, 0.1), (tmp_path / "copy", 0.2)):
        run(root, "micro", nats=1.6, metrics={"speed/step_seconds": seconds})
    (problem,) = load([runs, tmp_path / "copy"]).problems
    assert problem.reason.endswith("which is taken")


def _values(record: Record) -> dict[str, object]:
    about = ("schema_version", "files", "sha256")
    return {key: value for key, value in record.summary().items() if key not in about}


def test_arms_that_share_a_label_are_told_apart_by_what_differs(runs: Path, run: Make) -> None:
    for weight in (0.1, 0.25):
        run(runs, "global", science={"loss.balance": weight})
    run(runs, "global", science={"loss.balance": 0.1, "loss.z": 1e-3})
    run(runs, "micro")
    assert set(load([runs]).runs["arm"]) == {
        "micro",
        "global loss.balance=0.1",
        "global loss.balance=0.25",
        "global loss.balance=0.1 loss.z=0.001",
    }


def test_equal_labels_in_different_tables_stay_as_they_are(runs: Path, run: Make) -> None:
    run(runs, "global")
    run(runs, "global", science={"train.steps": 800})
    frame = load([runs])
    assert set(frame.runs["arm"]) == {"global"}
    assert len(frame.tables) == 2


def test_equal_labels_and_keys_are_told_apart_by_hash(runs: Path, run: Make) -> None:
    run(runs, "global")
    run(runs, "global", 1, arm_hash="other")
    assert "global (other)" in set(load([runs]).runs["arm"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data", "ffff"),
        ("seq_len", 256),
        ("global_bsz", 64),
        ("train.steps", 800),
        ("train.precision", "bf16"),
        ("data.valid_sequences", 8),
        ("model.num_experts", 8),
        ("model.num_shared_experts", 1),
    ],
)
def test_runs_unlike_in_what_makes_them_comparable_are_kept_apart(
    runs: Path, run: Make, key: str, value: object
) -> None:
    run(runs, "micro", 0)
    run(runs, "micro", 1)
    run(runs, "micro", 0, science={key: value})
    frame = load([runs])
    assert sorted(frame.runs["table"]) == [0, 0, 1]
    assert frame.tables[1][key] == value


def test_only_takes_what_is_named(runs: Path, run: Make) -> None:
    kept = run(runs, "micro")
    _text("summary.json", "{")(run(runs, "global"))
    frame = load([runs], {kept.name})
    assert frame.runs["run"].tolist() == [kept.name]
    assert frame.problems == ()


def test_a_directory_without_runs_is_an_error(runs: Path) -> None:
    with pytest.raises(RecordError, match=r"runs: holds no runs; make some with moebench sweep"):
        load([runs])
    with pytest.raises(RecordError, match=r"nowhere: is not a directory"):
        load([runs / "nowhere"])


def test_numbers_beyond_floats_are_no_metrics(runs: Path, run: Make) -> None:
    record = run(runs, "micro", state="failed")
    path = record.path / "status.json"
    path.write_text(json.dumps(record.status() | {"step": 10**400, "steps": True}))
    (problem,) = load([runs]).problems
    assert "status.json: holds a number of 401 digits" in problem.reason


# Choosing and splitting


def test_where_takes_runs_by_their_keys(runs: Path, run: Make) -> None:
    run(runs, "micro", 0)
    run(runs, "micro", 1)
    run(runs, "global", 0, science={"balance_bsz": 128, "loss.balance": 0.2})

    def taken(*where: str) -> list[str]:
        return sorted(f"{row['arm']}-{row['seed']}" for row in load(runs, where=where).rows())

    assert taken("scope=micro") == ["micro-0", "micro-1"]
    assert taken("arm=glob*") == ["global-0"]
    assert taken("seed=0,7", "arm=micro") == ["micro-0"]
    assert taken("loss.balance=0.2") == taken("loss.balance=2e-1") == ["global-0"]
    assert taken("data.homogeneity=1.0") == ["global-0", "micro-0", "micro-1"]
    assert taken("seed=9") == []
    with pytest.raises(ConfigError, match=r"--where loss.balanse: .* did you mean loss.balance"):
        taken("loss.balanse=1")
    with pytest.raises(ConfigError, match=r"--where seed: must be KEY=VALUE"):
        taken("seed")


def test_by_makes_a_table_of_each_value(runs: Path, run: Make) -> None:
    for weight in (0.1, 0.2):
        for arm in ("micro", "global"):
            run(runs, arm, science={"loss.balance": weight})
    assert len(load(runs).tables) == 1
    frame = load(runs, by=["loss.balance"])
    assert [table["loss.balance"] for table in frame.tables] == [0.1, 0.2]
    assert set(frame.runs["arm"]) == {"micro", "global"}
    with pytest.raises(ConfigError, match=r"--by sope: there is no such key; .* mean scope\?$"):
        load(runs, by=["sope"])


@pytest.mark.parametrize("about", [{"device": "cuda:0"}, {"moebench": "0.2.0"}])
def test_devices_and_versions_that_change_numbers_are_kept_apart(
    runs: Path, run: Make, about: dict[str, str]
) -> None:
    run(runs, "micro", 0)
    run(runs, "micro", 1, **about)
    assert len(load(runs).tables) == 2

"""Curves, metrics at a step, and the cache of both: read once, and again where a file changed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moebench.errors import ConfigError, RecordError
from moebench.records import Record
from moebench.report.read.frame import load
from tests.report.examples import by_metric

Make = Callable[..., Record]
ROWS = tuple(
    {"step": step, "train/loss": 5.0 - step / 100, "load/utilization/0": [1.0, 0.5]}
    | ({"valid/nats": 2.0 - step / 1000} if step % 100 == 0 else {})
    for step in range(0, 401, 10)
)


def test_curves_are_a_row_a_step_and_a_column_a_metric(runs: Path, run: Make) -> None:
    for seed in (0, 1):
        run(runs, "micro", seed, rows=ROWS)
    run(runs, "global", state="running", rows=ROWS)
    curves: Any = load(runs).curves()
    assert set(curves) == {"run", "arm", "seed", "table", "step", "train/loss", "valid/nats"}
    assert len(curves) == 2 * len(ROWS)
    assert sorted(set(curves["seed"])) == [0, 1]
    assert set(curves["arm"]) == {"micro"}
    assert curves["valid/nats"].notna().sum() == 2 * 5
    assert set(load(runs).curves(["valid/nats"])) == {*curves} - {"train/loss"}


def test_metrics_at_a_step_are_those_of_its_evaluation(runs: Path, run: Make) -> None:
    run(runs, "micro", rows=ROWS)
    run(runs, "global", rows=ROWS[:3])
    values = by_metric(load(runs).at(200))
    assert values["valid/nats"] == 1.8
    assert values["train/loss"] == pytest.approx(5 - 1.95)  # of steps 190 and 200
    with pytest.raises(ConfigError, match=r"--at 250: .* choose one of 0, 100, 200, 300, 400$"):
        load(runs).at(250)


@pytest.mark.parametrize("odd", [{"step": 10, "train/loss": 2**64}, {"step": 10, "a/c": [None]}])
def test_odd_rows_are_read_line_by_line(runs: Path, run: Make, odd: dict[str, object]) -> None:
    record = run(runs, "micro", rows=[*ROWS[:1], odd, {"step": 20, "a/b": 1.5}])
    curves: Any = load(runs).curves()
    assert curves["step"].tolist() == [0, 10, 20]
    assert curves["a/b"].tolist()[-1] == 1.5
    assert record.damage() == []


def test_changed_or_damaged_curves_are_named_and_left_out(runs: Path, run: Make) -> None:
    run(runs, "micro", rows=ROWS)
    for seed, text in ((1, '{"step": 1}\n'), (2, "no row\n")):
        record = run(runs, "micro", seed, rows=ROWS)
        (record.path / "metrics.jsonl").write_text(text)
    frame = load(runs).checked()
    assert len(frame.metrics["run"].unique()) == 3
    assert [reason for _, reason in frame.problems] == [
        "metrics.jsonl: was changed after the run; see moebench verify; its curves are left out"
    ] * 2
    assert set(frame.curves()["seed"]) == {0}
    with pytest.raises(RecordError, match=r"s1: metrics\.jsonl: was changed"):
        load(runs).curves()


# The cache


def test_what_is_cached_is_read_again_only_where_a_file_changed(
    runs: Path, run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, other = (run(runs, arm, rows=ROWS) for arm in ("micro", "global"))
    load(runs).curves()
    read: list[str] = []
    monkeypatch.setattr(
        "moebench.report.read.frame.read_run", lambda record: read.append(record.name) or {}
    )
    monkeypatch.setattr(
        "moebench.report.read.row_cache._curve", lambda record: read.append(record.name)
    )
    frame = load(runs)
    assert len(frame.curves()) == 2 * len(ROWS)
    assert read == []
    monkeypatch.undo()
    other.append({"step": 500, "train/loss": 1.0})
    other.seal({"arm": "global", "seed": 0, "steps": 400, "valid/nats": 9.0})
    frame = load(runs)
    columns = (frame.metrics[key] for key in ("run", "metric", "value"))
    values = {(name, metric): value for name, metric, value in zip(*columns, strict=True)}
    assert values[other.name, "valid/nats"] == 9.0
    assert values[kept.name, "valid/nats"] == 1.6
    assert len(frame.curves()) == 2 * len(ROWS) + 1


@pytest.mark.parametrize("damage", [b"", b"PAR1 no more", b"{}"])
def test_a_damaged_cache_is_made_again(
    runs: Path, run: Make, session_cache: Path, damage: bytes
) -> None:
    run(runs, "micro", rows=ROWS)
    before = set(session_cache.glob("report-*/*.parquet"))
    load(runs).curves()
    made = set(session_cache.glob("report-*/*.parquet")) - before
    assert len(made) == 2
    for path in made:
        path.write_bytes(damage)
    assert len(load(runs).curves()) == len(ROWS)
    assert all(path.read_bytes() != damage for path in made)


def test_without_a_place_for_the_cache_a_report_is_made_all_the_same(
    runs: Path, run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(runs, "micro", rows=ROWS)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MOEBENCH_CACHE", str(tmp_path / "file"))
    assert len(load(runs).curves()) == len(ROWS)

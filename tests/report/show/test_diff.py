"""Two runs or two studies side by side."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from moebench.errors import ConfigError, RecordError
from moebench.records import Record
from moebench.report import compare_two

Make = Callable[..., Record]


def rows(off: float) -> list[dict[str, float]]:
    """Equal until step 20, then off."""
    return [
        {"step": step, "train/loss": 5 - step / 100 + off * (step > 20), "valid/nats": 2 + off}
        for step in range(0, 60, 10)
    ]


def test_two_runs(runs: Path, run: Make) -> None:
    a = run(runs, "micro", 0, 1.6, rows=rows(0), metrics={"load/entropy": 0.9})
    more: dict[str, float | None] = {"load/entropy": 0.9, "load/max_vio_micro": 1.5, "zz/z": 1.0}
    b = run(runs, "global", 0, 1.5, rows=rows(0.5), metrics=more, torch="2.12.0")
    text = compare_two([a.path, Path(b.name)], runs)
    words = " ".join(text.split())
    assert f"A {a.name}, B {b.name}" in words
    assert "torch 2.11.0 2.12.0" in words
    assert "valid/nats 1.6 1.5 -0.1 lower is better load/max_vio_micro - 1.5" in words
    assert words.index("valid/nats") < words.index("torch 2.11.0") < words.index("zz/z - 1")
    assert "1 more are equal, bit for bit" in words
    assert "The training loss differs from step 30 on." in words
    content = json.loads(compare_two([a.path, b.path], runs, "json"))
    first, *_, others = [table for table in content["tables"] if "metric" in table["rows"][0]]
    assert first["rows"][0] == {"metric": "valid/nats", "A": "1.6", "B": "1.5", "B - A": "-0.1"}
    assert {"metric": "zz/z", "A": "-", "B": "1", "B - A": "-"} in others["rows"]


def test_a_run_and_itself(runs: Path, run: Make) -> None:
    a = run(runs, "micro", rows=rows(0))
    words = " ".join(compare_two([a.path, a.path], runs, "md").split())
    assert "They are equal." in words
    assert "equal, bit for bit, at all 6 shared steps" in words


def test_two_studies(runs: Path, run: Make, plan: Callable[..., Path]) -> None:
    short = [run(runs, arm, 0, nats) for arm, nats in (("micro", 1.6), ("global", 1.5))]
    longer = [run(runs, "micro", s, 1.2, science={"train.steps": 800}) for s in (0, 1)]
    plan(runs, "short", short)
    plan(runs, "longer", longer)
    words = " ".join(compare_two([Path("short"), Path("longer")], runs).split())
    assert "train.steps 400 800" in words
    assert "micro 1 and 2 1.6 1.2 -0.4" in words
    assert words.index("1.2 -0.4") < words.index("train.steps 400 800")
    assert "only in A: global" in words


def test_what_cannot_be_compared_is_said(runs: Path, run: Make) -> None:
    a = run(runs, "micro")
    with pytest.raises(ConfigError, match=r"compares two runs or two studies, .* 1 was given"):
        compare_two([a.path], runs)
    with pytest.raises(ConfigError, match="not one of each"):
        compare_two([a.path, runs], runs)
    with pytest.raises(RecordError, match=r"^nowhere: no such run or study in .*; moebench train"):
        compare_two([Path("nowhere"), runs], runs)
    with pytest.raises(ConfigError, match="--format csv: must be one of"):
        compare_two([a.path, a.path], runs, "csv")

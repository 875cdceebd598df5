"""The simulation of sweeps on clusters: what it must come to where that is plain."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FOLDER)
    before = set(sys.modules)
    module = importlib.import_module("scaling")
    for name in set(sys.modules) - before:  # other folders may have modules of these names
        monkeypatch.delitem(sys.modules, name)
    return module


def costs(scaling: Any, start: int = 0, seconds: float = 0.0) -> Any:
    """Of processes that start at once, except for these operations and seconds."""
    return scaling.Costs(
        scaling.Planning(0.0, 0.0, 0.0, 0.0, 0.0), scaling.Operations(start, 0, 0, 0, 0), seconds
    )


def test_runs_take_turns_in_slots(scaling: Any) -> None:
    work = scaling.Work(1, 1000.0, 0.0, 0.0)
    cluster = scaling.Cluster("", 4, 4, 1e12, 1e12, 1.0)
    for slots, runs, turns in ((1, 8, 8), (4, 8, 2), (4, 9, 3), (16, 8, 1)):
        made = scaling.simulate(costs(scaling), work, replace(cluster, slots=slots), runs)
        assert made.wall == pytest.approx(1000 * turns)
    stacked = scaling.simulate(costs(scaling), replace(work, runs=8), cluster, 32)
    assert stacked.wall == pytest.approx(1000)


def test_starts_queue_at_the_file_system(scaling: Any) -> None:
    work = scaling.Work(1, 1e6, 0.0, 0.0)
    each = scaling.Cluster("", 10, 1, 1e6, 1e12, 1e9)
    made = scaling.simulate(costs(scaling, start=10**6, seconds=2.0), work, each, 10)
    assert made.starting == pytest.approx(5.5 + 2, rel=0.01), "one second each, in turn"
    assert made.wall == pytest.approx(10 + 2 + 1e6)
    one = replace(each, forked=10)
    made = scaling.simulate(costs(scaling, start=10**6, seconds=2.0), work, one, 10)
    assert made.wall == pytest.approx(1 + 2 + 1e6), "a machine imports once"


def test_a_file_system_that_is_too_slow_slows_the_runs(scaling: Any) -> None:
    work = scaling.Work(1, 1000.0, 0.0, 1e9)
    cluster = scaling.Cluster("", 8, 8, 1e12, 4e6, 1.0)
    made = scaling.simulate(costs(scaling), work, cluster, 8)
    assert made.bytes == pytest.approx(8e6)
    assert made.wall == pytest.approx(2000)
    busy = scaling.Costs(costs(scaling).planning, scaling.Operations(0, 0, 50, 0, 0), 0.0)
    slow = replace(cluster, fs_bytes=1e12, fs_operations=20.0)
    made = scaling.simulate(busy, work, slow, 8)
    asked = 8 * (50 / scaling.status_every(500.0) + 2 / scaling.BEAT)
    assert made.operations == pytest.approx(asked)
    assert made.wall == pytest.approx(1000 * asked / 20)

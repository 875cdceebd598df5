"""Arms timed by themselves, and where their times are read."""

import json
from pathlib import Path

from tests.calls import Call


def test_one_arm_is_timed(call: Call, small: list[str]) -> None:
    told = call("bench", *small, "run.device_bsz=4", "--rounds", "2", "--json")
    assert told.code == 0, told.err
    [timing] = json.loads(told.out)["arms"].values()
    assert len(timing["step_seconds"]) == len(timing["counting_seconds"]) == 2
    assert min(timing["counting_seconds"]) > 0
    assert timing["ratio"] == 1
    assert not Path("runs/studies").exists()


def test_a_study_that_was_timed_has_a_cost_in_its_report(call: Call, small: list[str]) -> None:
    words = [*small, "scope=micro,global", "seed=0", "run.device_bsz=4"]
    assert call("sweep", *words, "--jobs", "1").code == 0
    assert "seconds" not in call("report", "--study", "sweep").out
    timed = call("bench", "--study", "sweep")
    assert timed.code == 0, timed.err
    told = " ".join(call("report", "--study", "sweep").out.split())
    assert "timed alone on 1 thread of a CPU, torch 2." in told
    assert "counting" in told


def test_a_study_is_timed_as_it_is(call: Call) -> None:
    told = call("bench", "scope=micro", "--study", "demo")
    assert told.code == 2
    assert told.err == "error: scope=micro: --study times its arms as they are; leave it out\n"

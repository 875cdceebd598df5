"""`moebench bench`: times are printed, and stored where a report reads them."""

import json
from pathlib import Path

from tests.calls import Call


def test_one_arm_is_timed(call: Call, small: list[str]) -> None:
    result = call("bench", *small, "run.device_bsz=4", "--rounds", "2", "--json")
    assert result.code == 0, result.err
    [timing] = json.loads(result.out)["arms"].values()
    assert len(timing["step_seconds"]) == len(timing["counting_seconds"]) == 2
    assert min(timing["counting_seconds"]) > 0
    assert timing["ratio"] == 1
    assert not Path("runs/studies").exists()


def test_the_times_of_a_study_appear_in_its_report(call: Call, small: list[str]) -> None:
    words = [*small, "scope=micro,global", "seed=0", "run.device_bsz=4"]
    assert call("sweep", *words, "--jobs", "1").code == 0
    assert "seconds" not in call("report", "--study", "sweep", "--full").out
    timed = call("bench", "--study", "sweep")
    assert timed.code == 0, timed.err
    report = " ".join(call("report", "--study", "sweep", "--full").out.split())
    assert "timed alone on 1 thread of a CPU, torch 2." in report
    assert "counting" in report


def test_a_study_is_timed_without_overrides(call: Call) -> None:
    result = call("bench", "scope=micro", "--study", "demo")
    assert result.code == 2
    assert result.err == "error: scope=micro: --study times its arms as they are; leave it out\n"

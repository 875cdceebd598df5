"""`moebench conform` as it is typed."""

import json
from pathlib import Path

from tests.calls import Call

LOSSES = str(Path(__file__).parents[1] / "conform/losses.py")


def test_ranks_run_in_processes_of_their_own(call: Call) -> None:
    code, out, _ = call("conform", f"{LOSSES}:OverRanks", "--json")
    told = json.loads(out)
    assert (code, told["conforms"]) == (1, False)
    assert {each["scenario"] for each in told["scenarios"] if not each["conforms"]} == {
        *("2 ranks", "2 ranks, 4 passes", "2 ranks, 4 passes, padding"),
    }


def test_what_cannot_be_tried_is_one_line(call: Call) -> None:
    code, out, err = call("conform", f"{LOSSES}:overranks")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {LOSSES}:overranks: {LOSSES} has no function overranks; did you")

"""Runs that are no pair are named: other starts, other first steps, other batches."""

import json
import re
from collections.abc import Callable
from pathlib import Path

from moebench.records import Record
from moebench.report import make_report
from moebench.report.show.sentences import MOST_PAIRS

Make = Callable[..., Record]


def test_broken_pairing_is_named(runs: Path, run: Make) -> None:
    rows = [{"step": 0, "valid/nats": 5.6}]
    for arm in ("micro", "global"):
        run(runs, arm, 0, rows=rows)
    for arm, science in (("twin", {"router.perturb": 1e-6}), ("dense", {"model.moe": False})):
        run(runs, arm, 0, rows=[{"step": 0, "valid/nats": 5.7}], science=science)
    assert "are no pair" not in make_report([runs]).render()
    broken = run(runs, "shuffled", 0, rows=[{"step": 0, "valid/nats": 5.63}])
    text = " ".join(make_report([runs]).render().split())
    assert re.search(
        rf"{broken.name} and \S+ are no pair: .* \(nats before the first step 5.6300 and 5.6000\)",
        text,
    )


def test_runs_whose_first_steps_hold_other_sequences_are_named(runs: Path, run: Make) -> None:
    for seed in (0, 1):
        for arm in ("micro", "global"):
            run(runs, arm, seed, first_sequences=f"of seed {seed}")
    run(runs, "before they were kept", 1)
    assert "are no pair" not in make_report([runs]).render()
    other = run(runs, "shuffled", 1, first_sequences="of a code that drew them otherwise")
    run(runs, "eight", 1, science={"micro_bsz": 8}, first_sequences="of eight")
    text = " ".join(make_report([runs]).render().split())
    sentence = r"{} and \S+-s1 are no pair: their first steps hold other sequences\."
    assert re.search(sentence.format(other.name), text)
    assert len(re.findall(sentence.format(r"\S+"), text)) == 1, "an arm whose keys explain it"


def test_arms_that_see_other_batches_are_named(runs: Path, run: Make) -> None:
    run(runs, "micro")
    run(runs, "mixed", science={"data.homogeneity": 0.0})  # the same sequences of a step, regrouped
    assert "are no pairs" not in make_report([runs]).render()
    run(runs, "law", science={"data.weights": {"law": 2}})
    run(runs, "eight", science={"micro_bsz": 8})
    text = " ".join(make_report([runs]).render().split())
    assert "eight and micro are no pairs: they see other batches (micro_bsz 8, there 4)." in text
    assert "(data.weights {'law': 2}, there at its default)" in text
    assert "mixed and micro" not in text
    run(runs, "other data", science={"data": "ffff"})  # is never compared at all
    assert len(make_report([runs]).tables) == 2


def test_many_runs_that_are_no_pairs_are_counted(runs: Path, run: Make) -> None:
    for arm in range(9):
        run(runs, f"arm {arm}", rows=[{"step": 0, "valid/nats": 5.6 + arm / 100}])
    report = make_report([runs])
    assert report.render().count("are no pair:") == MOST_PAIRS
    assert "2 more like these of runs that are no pairs: --json has all." in report.render()
    assert len(json.loads(report.encode("json"))["tables"][0]["unpaired"]) == 8

"""The compute-equivalent gain: a baseline's curve inverted."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moebench.records import Record
from moebench.report import make_report
from moebench.report.infer.tokens import mean_curve, worth
from tests.report.examples import texts

Make = Callable[..., Record]
STEPS = np.array([0.0, 100, 200, 300, 400])
NATS = np.array([5.0, 3.0, 2.4, 2.1, 2.0])


@pytest.mark.parametrize(
    ("difference", "share"),
    [
        (-0.05, 0.125),  # half of what the last quarter brought
        (0.05, -0.125),
        (-0.1, 0.25),
        (-0.25, 0.375),
        (-3.0, 1.0),
        (0.0, 0.0),
        (-3.1, None),
        (3.1, None),
    ],
)
def test_a_difference_is_worth_the_tokens_of_the_curves_end(
    difference: float, share: float | None
) -> None:
    found = worth(STEPS, NATS, difference)
    assert found == (None if share is None else pytest.approx(share))


def test_a_curve_that_rose_counts_as_falling_later() -> None:
    assert worth(STEPS, np.array([5.0, 2.1, 2.4, 2.1, 2.0]), -0.4) == pytest.approx(0.5)


def test_the_last_time_at_a_height_counts() -> None:
    """Just above the last bump, the curve was there before that bump's valley, and no later."""
    curve = np.array([5.0, 3.0, 1.4, 1.6, 1.2])
    assert worth(STEPS, curve, -0.39) == pytest.approx(1 - (300 + 100 / 40) / 400)
    assert worth(STEPS, curve, -0.41) == pytest.approx(1 - (100 + 100 * 1.39 / 1.6) / 400)


def test_a_mean_curve_needs_shared_evaluations() -> None:
    one, other = [(0, 5.0), (100, 3.0), (200, 2.0)], [(0, 6.0), (100, 4.0), (200, 2.5)]
    found = mean_curve([one, other])
    assert found is not None
    assert found[1].tolist() == [5.5, 3.5, 2.25]
    assert mean_curve([one, other[:2]]) is None
    assert mean_curve([]) is None


def test_a_report_turns_differences_into_tokens(runs: Path, run: Make) -> None:
    for seed in range(3):
        rows = [
            {"step": int(step), "valid/nats": float(nats)}
            for step, nats in zip(STEPS, NATS, strict=True)
        ]
        for arm, nats in (("micro", 2.0), ("global", 1.95), ("odd", 5.5)):
            run(runs, arm, seed, nats + 0.001 * seed * (arm != "micro"), rows=rows)
    made = make_report([runs], baseline="micro")
    saved = {row["arm"]: row["tokens_saved"] for row in made.to_dict()["rows"]}
    assert saved["micro"] is None
    assert saved["global"]["value"] == pytest.approx(0.1225)
    assert saved["global"]["low"] < 0.1225 < saved["global"]["high"]
    assert saved["global"]["tokens"] == round(0.1225 * 400 * 128 * 128)
    assert (saved["odd"]["value"], saved["odd"]["beyond"]) == (None, True)
    text = texts(made)
    assert "Compute-equivalent gain" in text
    assert "12.2 %" in text
    assert "beyond the curve" in text
    assert "Compute-equivalent gain" in made.page("again")
    assert "Compute-equivalent gain" not in texts(make_report([runs], baseline="micro", at=100))

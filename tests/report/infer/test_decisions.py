"""When there is a verdict: not too early, and at levels adjusted by an order or by Holm."""

import math
import re

import numpy as np
import pytest

from moebench.report.infer.decisions import adjusted, too_early, treatment_shows


def test_holms_method_multiplies_by_the_tests_that_are_left() -> None:
    p = np.array([[0.01, 0.04, 0.03, 0.005], [0.9, 0.5, 0.01, 0.02]])
    expected = [0.03, 0.06, 0.06, 0.02], [1.0, 1.0, 0.04, 0.06]
    for found, wanted in zip(adjusted(p, ordered=False), expected, strict=True):
        assert found.tolist() == pytest.approx(wanted)


def test_in_an_order_no_test_passes_that_follows_an_undecided_one() -> None:
    p = np.array([0.01, 0.04, 0.2, 0.001])
    assert adjusted(p, ordered=True).tolist() == [0.01, 0.04, 0.2, 0.2]


@pytest.mark.parametrize(
    ("bits", "trigram", "step", "why"),
    [
        ({0: [2.0, 2.4], 1: [2.1]}, 2.5, None, ""),
        (
            {0: [2.0, 2.8], 1: [2.6]},
            2.5,
            None,
            "2.600 bits a byte in seed 1 .* the 2.500 of a byte trigram",
        ),
        ({0: [2.5]}, 2.5, None, "2.500 bits a byte in seed 0"),
        ({0: [2.0]}, None, None, "do not record .* trigram"),
        ({}, 2.5, None, "do not record bits a byte"),
        ({0: [2.0]}, 2.5, 100, "step 100 of 400"),
        ({0: [2.0]}, 2.5, 400, ""),
    ],
)
def test_it_is_too_early(
    bits: dict[int, list[float]], trigram: float | None, step: int | None, why: str
) -> None:
    assert re.search(why, too_early(bits, trigram, step, 400))
    assert bool(too_early(bits, trigram, step, 400)) == bool(why)


def test_a_treatment_shows_by_deviations_between_seeds_not_of_pairs() -> None:
    base = {0: 1.0, 1: 2.0, 2: 3.0}
    assert treatment_shows({s: v + 2 for s, v in base.items()}, base) == pytest.approx(2.0)
    assert treatment_shows({s: v + 0.01 for s, v in base.items()}, base) == pytest.approx(0.01)
    wide = {0: 0.0, 1: 4.0, 2: 8.0}
    assert treatment_shows(wide, base) == pytest.approx(2 / math.sqrt((16 + 1) / 2))
    assert treatment_shows({0: 1.0}, base) is None
    assert treatment_shows({0: 1.0, 1: 1.0}, {0: 2.0, 1: 2.0}) is None

"""How much micro-batches differ beside chance: by hand, and on counts of a known spread."""

import numpy as np
import pytest

from moebench.metrics.dispersion import Dispersion, dispersion


def of_draws(draws: np.ndarray, top_k: int = 1) -> list[Dispersion]:
    """The dispersion of each of some files of one step."""
    made = [dispersion(counts, np.zeros(len(counts)), top_k) for counts in draws]
    assert all(made)
    return [one for one in made if one]


def coverage(made: list[Dispersion], truth: float) -> float:
    return float(np.mean([one.low <= truth <= one.high for one in made]))


def test_the_ratio_is_that_of_a_computation_by_hand() -> None:
    # p = (1/2, 1/2), T_m = 10, T = 20: the deviations are +-4, +-2 and +-3; see the module
    counts = np.array([[[9, 1]], [[1, 9]], [[7, 3]], [[3, 7]]])
    made = dispersion(counts, [0, 0, 1, 1], 1)
    assert made is not None
    observed = (4 * 4**2 + 4 * 2**2) / 10
    expected = 2 * (20 / 19) * 2 * (1 / 4)
    assert made.ratio == pytest.approx(observed / expected)
    assert made.by_layer == [pytest.approx(made.ratio)]
    assert (made.micro_batches, made.pools) == (4, 2)
    assert made.low < made.ratio < made.high
    # E sum_i var(f_i), with a divisor of 2 micro-batches less 1 in each of 2 steps
    assert made.excess == pytest.approx(2 * np.mean([2 * 2 * 0.4**2, 2 * 2 * 0.2**2]))
    assert made.chance == pytest.approx(made.excess / made.ratio)


def test_the_expectation_is_that_of_dealing_top_k_tokens_at_random() -> None:
    draw = np.random.default_rng(0)
    scores = draw.gumbel(size=(60, 6)) + np.linspace(0, 2, 6)
    chosen = np.zeros((60, 6), np.int64)
    np.put_along_axis(chosen, np.argsort(-scores, 1)[:, :2], 1, 1)
    sizes = [10, 20, 30]  # of unequal micro-batches
    parts = np.split(np.arange(60), np.cumsum(sizes)[:-1])
    dealt = [
        [[chosen[order[part]].sum(0)] for part in parts]
        for order in (draw.permutation(60) for _ in range(1500))
    ]
    ratios = [one.ratio for one in of_draws(np.array(dealt), 2)]
    assert np.mean(ratios) == pytest.approx(1, abs=4 * np.std(ratios) / 1500**0.5)
    assert np.std(ratios) / 1500**0.5 < 0.02


def test_chance_is_covered_and_domains_are_not() -> None:
    draw = np.random.default_rng(0)
    share = draw.dirichlet(np.full(8, 3.0))
    chance = of_draws(draw.multinomial(256, share, size=(400, 16, 2)))
    assert np.mean([one.ratio for one in chance]) == pytest.approx(1, abs=0.03)
    assert 0.92 < coverage(chance, 1) < 0.98
    domains = draw.dirichlet(np.full(8, 3.0), size=4)
    sorted_ = of_draws(draw.multinomial(256, domains[np.arange(16) % 4], size=(50, 16))[:, :, None])
    assert all(one.low > 2 for one in sorted_)


def test_more_than_chance_is_covered_too() -> None:
    """Dirichlet-multinomial counts, whose ratio is 1 + (T - 1) / (a + 1)."""
    draw = np.random.default_rng(1)
    share = draw.dirichlet(np.full(8, 50 / 8), size=(400, 24))
    made = of_draws(draw.multinomial(256, share)[:, :, None])
    truth = 1 + 255 / 51
    assert np.mean([one.ratio for one in made]) == pytest.approx(truth, rel=0.02)
    assert 0.91 < coverage(made, truth) < 0.98


def test_what_cannot_differ_has_none() -> None:
    assert dispersion([[[3, 1]], [[2, 2]]], [0, 1], 1) is None  # one micro-batch a step
    assert dispersion([[[3, 0]], [[2, 0]]], [0, 0], 1) is None  # one expert takes all
    equal = dispersion([[[2, 2]], [[2, 2]]], [0, 0], 1)
    assert equal is not None
    assert (equal.ratio, equal.low, equal.high) == (0, 0, 0)

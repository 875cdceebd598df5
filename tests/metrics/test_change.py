"""How routing changes, against literal loops, constructed cases and chance."""

import numpy as np
import pytest

from moebench.metrics.change import changed_tokens, overlap, saturation


def draws(seed: int, tokens: int = 4000) -> np.ndarray:
    """Random top-2 of 8 experts, [layers 2, sequences 4, tokens / 4, 2]."""
    random = np.random.default_rng(seed).random((2, 4, tokens // 4, 8))
    return random.argsort(-1)[..., :2]


def test_overlap_and_change_equal_loops_over_tokens() -> None:
    one, other = draws(0, 40), draws(1, 40)
    for layer in range(2):
        pairs = [
            (set(a), set(b))
            for a, b in zip(
                one[layer].reshape(-1, 2).tolist(),
                other[layer].reshape(-1, 2).tolist(),
                strict=True,
            )
        ]
        common = sum(len(a & b) / 2 for a, b in pairs) / len(pairs)
        assert overlap(one, other)[layer] == pytest.approx(common)
        different = sum(a != b for a, b in pairs) / len(pairs)
        assert changed_tokens(one, other)[layer] == pytest.approx(different)


def test_equal_and_independent_selections() -> None:
    one = draws(0)
    assert (overlap(one, one[..., ::-1]) == 1).all(), "order in a token means nothing"
    assert (changed_tokens(one, one[..., ::-1]) == 0).all()
    assert overlap(one, draws(1)) == pytest.approx(2 / 8, abs=0.03)
    assert changed_tokens(one, draws(1)) == pytest.approx(1 - 1 / 28, abs=0.02)


def test_saturation_ends_at_one() -> None:
    found = saturation({9: draws(2), 0: draws(0), 3: draws(2)})
    assert list(found) == [0, 3, 9]
    assert found[9] == found[3] == 1
    assert found[0] == pytest.approx(2 / 8, abs=0.03)

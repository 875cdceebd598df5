"""Perplexity and bits per byte by hand."""

import math

import numpy as np
import pytest

from moebench.metrics.quality import quality


def test_mean_over_domains_is_unweighted_whatever_their_sizes() -> None:
    found = quality(
        "valid",
        nats=np.array([10.0, 30.0, 8.0]),
        tokens=10,
        text_bytes=np.array([20, 20, 5]),
        domain=np.array([0, 0, 1]),
        domains=["a", "b"],
    )
    assert found["valid/nats/a"] == pytest.approx(2.0)
    assert found["valid/nats/b"] == pytest.approx(0.8)
    assert found["valid/nats"] == pytest.approx(1.4)
    assert found["valid/ppl"] == pytest.approx(math.exp(1.4))
    assert found["valid/ppl/a"] == pytest.approx(math.exp(2.0))
    assert found["valid/bits_per_byte/a"] == pytest.approx(1 / math.log(2))
    assert found["valid/bits_per_byte/b"] == pytest.approx(1.6 / math.log(2))
    assert found["valid/bits_per_byte"] == pytest.approx(1.3 / math.log(2))


def test_bits_per_byte_do_not_depend_on_the_tokens_a_text_is_cut_into() -> None:
    """Two tokenizers that give a text the same likelihood."""

    def bits(tokens: int) -> float:
        return quality("tune", np.array([70.0]), tokens, np.array([50]), np.array([0]), ["a"])[
            "tune/bits_per_byte"
        ]

    assert bits(50) == bits(13)

"""Perplexity and bits per byte by hand."""

import math

import numpy as np
import pytest

from moebench.metrics.quality import Documents, quality, standard_errors


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


def test_errors_are_those_of_a_ratio_over_documents() -> None:
    """Against the scatter of the value over fresh sets of documents."""
    draw = np.random.default_rng(0)

    def documents() -> Documents:
        tokens = draw.integers(5, 60, 80)
        own = draw.normal(2.0, 0.5, 80)  # a document's own difficulty
        return Documents(tokens * own, tokens, 2 * tokens, np.repeat([0, 1], 40))

    values, errors, bits = [], [], []
    for _ in range(300):
        made = documents()
        ratio = [
            made.nats[made.domain == d].sum() / made.tokens[made.domain == d].sum() for d in (0, 1)
        ]
        values.append(sum(ratio) / 2)
        found = standard_errors("valid", made, ["a", "b"])
        errors.append(found["valid/nats_se"])
        bits.append(found["valid/bits_per_byte_se"])
        alone = (found["valid/nats_se/a"] ** 2 + found["valid/nats_se/b"] ** 2) ** 0.5 / 2
        assert found["valid/nats_se"] == pytest.approx(alone)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.12)
    assert np.mean(bits) == pytest.approx(np.mean(errors) / 2 / math.log(2))


def test_a_single_document_has_no_error() -> None:
    one = Documents(*(np.array([1.0, 2, 3]) for _ in range(3)), domain=np.array([0, 0, 1]))
    assert {*standard_errors("tune", one, ["a", "b"])} == {
        "tune/nats_se/a",
        "tune/bits_per_byte_se/a",
    }

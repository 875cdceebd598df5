"""Perplexity and bits per byte by hand."""

import math

import numpy as np
import pytest

from moebench.data.tokenizer import ByteTokenizer, Subwords, train_bpe
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


def test_bits_per_byte_are_equal_for_two_tokenizers_of_equal_likelihood() -> None:
    """Models that give every letter 1 in 16, whatever pieces it comes in: 4 bits each."""
    text = "the cat sat on the mat, then the dog sat on the cat; " * 40
    found, nats = [], []
    for tokenizer in (ByteTokenizer(), Subwords(train_bpe([text], 270), "x")):
        tokens = tokenizer.encode(text.encode())
        rows = tokens[: len(tokens) // 10 * 10].reshape(-1, 10)
        lost = [sum(len(tokenizer.decode([token])) for token in row) * math.log(16) for row in rows]
        made = quality(
            "tune",
            np.array(lost),
            10,
            np.array([tokenizer.bytes_in(row) for row in rows]),
            np.zeros(len(rows), int),
            ["a"],
        )
        found.append(made["tune/bits_per_byte"])
        nats.append(made["tune/nats"])
    assert found == pytest.approx([4, 4])
    assert nats[1] > 1.5 * nats[0], "the pieces are longer"


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

"""Shares of the domains: kept at any time, and made of the keys that a user types."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moebench.config.schema import DataConfig
from moebench.data.batches import Batches
from moebench.data.corpus import Corpus
from moebench.data.turns import Turns, shares
from moebench.errors import DataError


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_no_domain_is_ever_a_turn_from_its_share(wanted: list[int]):
    turns = Turns(wanted)
    domain, number = turns.at(np.arange(3 * turns.period))
    taken = np.zeros(len(wanted))
    for turn, (d, n) in enumerate(zip(domain, number, strict=True), 1):
        assert taken[d] == n
        taken[d] += 1
        assert (abs(taken - turn * np.array(wanted) / sum(wanted)) < 1).all()


def test_equal_shares_alternate():
    assert Turns([7, 7, 7]).at(np.arange(7))[0].tolist() == [0, 1, 2, 0, 1, 2, 0]


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 60))
def test_most_turns_in_a_stretch(wanted: list[int], length: int):
    turns = Turns(wanted)
    order = turns.at(np.arange(turns.period + length))[0]
    for d in range(len(wanted)):
        counted = [int((order[begin : begin + length] == d).sum()) for begin in range(turns.period)]
        assert turns.most(d, length) == max(counted)


def test_shares_follow_tokens_temperature_and_weights(corpus: Corpus):
    tokens = np.array([len(corpus.train(domain)) for domain in corpus.domains])
    assert shares(corpus, DataConfig()) == (1, 1, 1)
    proportional = np.array(shares(corpus, DataConfig(sampling="proportional")))
    assert np.allclose(proportional / proportional.sum(), tokens / tokens.sum(), atol=1e-4)
    flat = np.array(shares(corpus, DataConfig(sampling="proportional", temperature=5.0)))
    assert np.allclose(flat / flat.sum(), tokens**0.2 / (tokens**0.2).sum(), atol=1e-4)
    assert shares(corpus, DataConfig(weights={"beta": 2.0})) == (2500, 5000, 2500)
    with pytest.raises(DataError, match=r"data\.weights=\{x:2\}: no domain of that name"):
        shares(corpus, DataConfig(weights={"x": 2.0}))


def test_a_weighted_domain_comes_as_often(corpus: Corpus):
    sizes = {"seq_len": 32, "micro_bsz": 4, "global_bsz": 16, "seed": 0}
    batches = Batches(corpus, **sizes, shares=(1, 2, 1))
    seen = Counter(d for step in range(1, 5) for d in batches.batch(step).domain.tolist())
    assert seen == {0: 16, 1: 32, 2: 16}

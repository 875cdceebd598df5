"""Batches are pure, their quotas fixed, and nothing is drawn twice in an epoch."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moebench.config.schema import DataConfig, ExperimentConfig
from moebench.data.batches import (
    Batch,
    Batches,
    check_epochs,
    sequences_hash,
    validation,
)
from moebench.data.corpus import Corpus, prepare
from moebench.errors import DataError

shared_corpus = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def make(corpus: Corpus, **changes) -> Batches:
    sizes = {"seq_len": 32, "micro_bsz": 4, "global_bsz": 16, "seed": 0}
    return Batches(corpus, **{**sizes, **changes})


def rows(batch: Batch) -> list[bytes]:
    """A batch's sequences with their domains, as a multiset."""
    return [d.tobytes() + t.tobytes() for d, t in zip(batch.domain, batch.tokens, strict=True)]


def starts(corpus: Corpus, batch: Batch, seq_len: int) -> list[tuple[int, int]]:
    """(domain, first token) of each sequence, which random text makes unique."""
    streams = [corpus.train(domain).tobytes() for domain in corpus.domains]
    places = []
    for domain, tokens in zip(batch.domain, batch.tokens.astype(np.uint8), strict=True):
        start = streams[domain].index(tokens.tobytes())
        assert start % seq_len == 0
        places.append((int(domain), start))
    return places


def test_shapes(corpus: Corpus):
    batch = make(corpus).batch(1)
    assert batch.tokens.shape == (16, 33)
    assert batch.domain.shape == (16,)
    assert batch.tokens.dtype == batch.domain.dtype == np.int64
    assert batch.tokens.flags.writeable


def content(batch: Batch) -> tuple[bytes, bytes]:
    """Equal for equal tokens and domains in the same order."""
    return batch.tokens.tobytes(), batch.domain.tobytes()


@shared_corpus
@given(
    seed=st.integers(0, 2**32 - 1),
    steps=st.lists(st.integers(1, 400), min_size=2, max_size=5),
    homogeneity=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_a_batch_depends_on_seed_and_step_only(
    corpus: Corpus, seed: int, steps: list[int], homogeneity: float
):
    used = make(corpus, seed=seed, homogeneity=homogeneity)
    known = [content(used.batch(step)) for step in steps]
    for step, expected in zip(steps, known, strict=True):
        fresh = make(corpus, seed=seed, homogeneity=homogeneity)
        assert content(fresh.batch(step)) == expected == content(used.batch(step))
    assert len(set(known)) == len(set(steps))


def test_seeds_differ(corpus: Corpus):
    assert len({content(make(corpus, seed=seed).batch(1)) for seed in range(20)}) == 20


def test_no_release_of_numpy_changes_the_draws():
    assert np.random.Philox(key=2**100 + 7).random_raw(4).tolist() == [
        1439394571347173794,
        13635010868414226146,
        12625896248249154201,
        13956375693135762080,
    ]


@shared_corpus
@given(
    seed=st.integers(0, 1000),
    micro_bsz=st.sampled_from([1, 2, 4]),
    micro_batches=st.integers(1, 7),
)
def test_domains_take_turns(corpus: Corpus, seed: int, micro_bsz: int, micro_batches: int):
    size = micro_bsz * micro_batches
    batches = make(corpus, seed=seed, micro_bsz=micro_bsz, global_bsz=size)
    counts = np.zeros(len(corpus.domains), int)
    for step in range(1, 10):
        domain = batches.batch(step).domain.reshape(micro_batches, micro_bsz)
        assert (domain == domain[:, :1]).all()  # each micro-batch is of one domain
        counts += np.bincount(domain[:, 0], minlength=len(counts))
        assert counts.max() - counts.min() <= 1


def test_the_first_domain_and_the_order_change(corpus: Corpus):
    orders = {tuple(make(corpus, micro_bsz=1, seed=s).batch(1).domain) for s in range(20)}
    assert len(orders) > 15
    one = [make(corpus, micro_bsz=1, global_bsz=1, seed=s).batch(1).domain[0] for s in range(40)]
    assert set(one) == {0, 1, 2}


def test_windows_are_drawn_without_replacement(corpus: Corpus):
    batches = make(corpus, micro_bsz=2, global_bsz=6)  # one micro-batch of each domain a step
    windows = [(len(corpus.train(domain)) - 1) // 32 for domain in corpus.domains]
    drawn: list[list[int]] = [[], [], []]
    for step in range(1, max(windows) + 1):
        for domain, start in starts(corpus, batches.batch(step), 32):
            drawn[domain].append(start // 32)
    for number, taken in zip(windows, drawn, strict=True):
        assert len(taken) >= 2 * number
        first, second = taken[:number], taken[number : 2 * number]
        assert sorted(first) == sorted(second) == list(range(number))
        assert first != second


def test_a_domain_keeps_its_order_when_another_is_taken_away(corpus: Corpus, folder: Path):
    fewer = prepare(DataConfig(source="folder", path=str(folder), domains=["gamma", "alpha"]))
    drawn = []
    for source in (corpus, fewer):
        batches = make(source, micro_bsz=1, global_bsz=12)
        gamma = source.domains.index("gamma")
        # Of one step, in any order: the order of micro-batches in it is a draw of its own.
        parts = [batches.batch(step) for step in range(1, 4)]
        drawn.append(
            [
                Counter(part.tokens[i].tobytes() for i in np.flatnonzero(part.domain == gamma))
                for part in parts
            ]
        )
    everything, some = (sum(counts, Counter()) for counts in drawn)
    assert everything.total() == 12
    assert some.total() == 18
    assert everything <= some


@shared_corpus
@given(seed=st.integers(0, 1000), step=st.integers(1, 50), homogeneity=st.floats(0, 1))
def test_homogeneity_only_regroups(corpus: Corpus, seed: int, step: int, homogeneity: float):
    whole = make(corpus, seed=seed).batch(step)
    mixed = make(corpus, seed=seed, homogeneity=homogeneity).batch(step)
    assert Counter(rows(mixed)) == Counter(rows(whole))
    moved = sum(a != b for a, b in zip(rows(mixed), rows(whole), strict=True))
    assert moved <= round((1 - homogeneity) * 16)


def test_homogeneity_0_mixes_freely(corpus: Corpus):
    batches = make(corpus, homogeneity=0.0, global_bsz=48)
    pure = 0
    for step in range(1, 21):
        domain = batches.batch(step).domain.reshape(12, 4)
        pure += int((domain == domain[:, :1]).all(1).sum())
    assert pure < 24  # of 240; 3 ** -3 of them are expected


def test_domains_are_what_the_text_says(corpus: Corpus):
    batch = make(corpus, seq_len=800, homogeneity=0.3).batch(3)
    for domain, tokens in zip(batch.domain, batch.tokens, strict=True):
        assert f"{corpus.domains[domain]} train" in corpus.tokenizer.decode(tokens)


def test_text_shorter_than_a_sequence(corpus: Corpus):
    tokens = len(corpus.train("beta"))
    make(corpus, seq_len=tokens - 1)
    with pytest.raises(DataError) as caught:
        make(corpus, seq_len=tokens)
    assert str(caught.value) == (
        f"seq_len={tokens}: domain 'beta' has {tokens} tokens of training text, and one sequence "
        f"takes {tokens + 1}; lower seq_len, add text or pick others by data.domains"
    )


def test_check_epochs_allows_what_its_remedy_says(corpus: Corpus):
    def check(steps: int, most: float) -> None:
        config = ExperimentConfig(seq_len=32, micro_bsz=4, global_bsz=16)
        config.train.steps, config.data.max_epochs = steps, most
        check_epochs(corpus, config)

    windows = (len(corpus.train("beta")) - 1) // 32
    with pytest.raises(DataError) as caught:
        check(1000, 4.0)
    epochs = 1334 * 4 / windows  # 4000 micro-batches of three domains
    fewer = 4 * windows // 4 * 3 // 4
    assert str(caught.value) == (
        f"data.max_epochs=4: train.steps=1000 would read domain 'beta' {epochs:.2f} times "
        f"({windows} sequences of seq_len=32); use at most train.steps={fewer}, or raise "
        f"data.max_epochs to {int(np.ceil(epochs))}"
    )
    check(fewer, 4.0)
    check(1000, np.ceil(epochs))
    with pytest.raises(DataError):
        check(fewer + 1, 4.0)
    with pytest.raises(DataError, match="add text, or raise"):
        check(1, 0.001)


@pytest.mark.parametrize("half", ["tune", "test"])
@pytest.mark.parametrize("sequences", [1, 3, 7])
def test_validation_is_spread_over_its_half(corpus: Corpus, half, sequences: int):
    batch = validation(corpus, half, sequences=sequences, seq_len=32)
    assert batch.tokens.shape == (3 * sequences, 33)
    assert batch.domain.tolist() == [d for d in range(3) for _ in range(sequences)]
    for d, domain in enumerate(corpus.domains):
        stream = corpus.valid(domain, half)
        first = [
            stream.tobytes().index(row.astype(np.uint8).tobytes())
            for row in batch.tokens[batch.domain == d]
        ]
        assert first == [i * len(stream) // sequences for i in range(sequences)]
        assert (np.diff([*first, len(stream)]) >= 33).all()


def test_validation_uses_all_the_room_and_no_more(corpus: Corpus):
    room = min(len(corpus.valid(domain, "test")) // 33 for domain in corpus.domains)
    domain = next(d for d in corpus.domains if len(corpus.valid(d, "test")) // 33 == room)
    validation(corpus, "test", sequences=room, seq_len=32)
    with pytest.raises(DataError) as caught:
        validation(corpus, "test", sequences=room + 1, seq_len=32)
    assert str(caught.value) == (
        f"data.valid_sequences={room + 1}: domain {domain!r} has room for {room} of 33 tokens in "
        f"its test half; lower data.valid_sequences to {room}, or add validation text"
    )
    with pytest.raises(DataError, match=r"has room for 0 of .*; lower seq_len, or add"):
        validation(corpus, "tune", sequences=1, seq_len=1_000_000)


def test_sequences_hash_sees_sequences_and_not_their_order(corpus: Corpus):
    orders = [make(corpus, homogeneity=h).batch(1) for h in (1.0, 0.5, 0.0)]
    assert len({content(batch) for batch in orders}) == 3
    assert len({sequences_hash(batch) for batch in orders}) == 1
    others = [make(corpus).batch(2), make(corpus, seed=1).batch(1)]
    assert len({sequences_hash(batch) for batch in (orders[0], *others)}) == 3

"""Maps of prescribed routers, against literal loops over tokens and experts."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moebench.config.compose import Composer
from moebench.config.schema import ExperimentConfig
from moebench.data.corpus import Corpus, prepare
from moebench.data.draws import key, permutation
from moebench.data.maps import (
    ROUNDS,
    RoutingMap,
    assigned,
    assigned_in_turns,
    check_map,
    drawn_rows,
    from_bytes,
    make_map,
    own_experts,
    token_weights,
    turns_needed,
)
from moebench.errors import ConfigError, RecordError

COMPOSER = Composer()
ZIPF = 10**6 // np.arange(1, 301)


def made(folder: Path, words: str) -> tuple[ExperimentConfig, Corpus]:
    config = COMPOSER.compose(
        ["model=smoke", "data=folder", f"data.path={folder}", *words.split()],
    )
    return config, prepare(config.data)


def violation(rows: np.ndarray, weight: np.ndarray, experts: int) -> float:
    load = [0] * experts
    for chosen, own in zip(rows.tolist(), weight.tolist(), strict=True):
        for expert in chosen:
            load[expert] += own
    return max(load) / (sum(load) / experts) - 1


@pytest.mark.parametrize(("experts", "top_k"), [(8, 1), (16, 2), (6, 4), (4, 4)])
def test_an_assignment_is_that_of_the_loop(experts: int, top_k: int) -> None:
    weight = ZIPF[:40]
    draws = np.random.Philox(key=key("a", "expert")).random_raw((40, top_k))
    order = [int(item) for item in permutation(40, "a", "order")]
    order = sorted(order, key=lambda item: -weight[item])  # stable
    ties = [int(tie) for tie in permutation(experts, "a", "ties")]
    load, expected = [0] * experts, {}
    even = int(weight.sum()) * top_k // experts
    for number, item in enumerate(order):
        room = [x for x in range(experts) if load[x] + weight[item] <= even]
        chosen, enough = [], len(room) >= top_k
        for place in range(top_k):
            if enough:
                pick = room[int(draws[number, place]) % len(room)]
                room.remove(pick)
            else:
                rest = [x for x in range(experts) if x not in chosen]
                pick = min(rest, key=lambda x: (load[x], ties[x]))
            chosen.append(pick)
        for expert in chosen:
            load[expert] += int(weight[item])
        expected[item] = chosen
    found = assigned(weight, experts, top_k, "a")
    assert found.tolist() == [expected[item] for item in range(40)]


@pytest.mark.parametrize(("experts", "top_k"), [(16, 2), (64, 8), (20, 3)])
def test_loads_are_even_where_a_modulus_is_not(experts: int, top_k: int) -> None:
    turns = turns_needed(ZIPF, experts, top_k)
    rows = assigned_in_turns(ZIPF, turns, experts, top_k, "b")
    weight = np.repeat(ZIPF, turns) / turns
    assert all(len(set(row)) == top_k for row in rows.tolist())
    assert violation(rows, weight, experts) < 0.02
    modulus = (np.arange(len(ZIPF))[:, None] + np.arange(top_k)) % experts
    assert violation(modulus, ZIPF, experts) > 0.5


def test_only_a_token_above_an_even_share_takes_turns() -> None:
    weight = np.array([500, 100, 100, 100, 100, 100])  # an even share is 250
    turns = turns_needed(weight, 8, 2)
    rows = assigned_in_turns(weight, turns, 8, 2, "c").reshape(6, turns, 2)
    assert turns == 2
    assert sorted(rows[0, 0]) != sorted(rows[0, 1])
    assert all((rows[token] == rows[token, 0]).all() for token in range(1, 6))


def test_layers_are_independent_partitions() -> None:
    """That two tokens share an expert in one layer tells nothing of another layer."""
    weight = np.full(300, 5)
    share = [
        (rows[:, None, :, None] == rows[None, :, None, :]).any((2, 3))[np.triu_indices(300, 1)]
        for rows in (assigned(weight, 16, 2, layer) for layer in range(2))
    ]
    expected = share[0].mean() * share[1].mean()
    assert (share[0] & share[1]).mean() == pytest.approx(expected, rel=0.1)


def test_each_expert_is_in_as_many_rows_of_a_hash() -> None:
    for experts, top_k in ((16, 2), (5, 2), (3, 3)):
        rows = drawn_rows(experts, top_k, 0)
        assert rows.shape == (ROUNDS * experts, top_k)
        assert all(len(set(row)) == top_k for row in rows.tolist())
        assert set(Counter(rows.ravel().tolist()).values()) == {ROUNDS * top_k}


def test_domains_have_experts_of_their_own() -> None:
    own = own_experts(13, 3, 2, 0)
    assert own.shape == (3, 4)
    assert len(set(own.ravel().tolist())) == 12
    assert own_experts(6, 3, 2, 0).shape == (3, 2)


@pytest.mark.parametrize("named", [None, 32])
def test_weights_are_frequencies_of_the_training_text(text_folder: Path, named: int | None) -> None:
    _, corpus = made(text_folder, "")
    found = token_weights(corpus, (1, 2, 1), named)
    for d, (name, share) in enumerate(zip(corpus.domains, (1, 2, 1), strict=True)):
        times = Counter(corpus.train(name).tolist())
        for token in range(256):
            exact = share * times[token] / len(corpus.train(name)) * 2**30 * (named or 1)
            assert found[d, token] == pytest.approx(exact, abs=(named or 1) + 1)
    assert found.min() == 1
    assert found.shape[1] == 256 + (3 if named else 0)
    if named:  # as often as the text's tokens together, divided by their number
        assert found[1, 256:].tolist() == [1, 2 * 2**30 + 1, 1]
        assert found[1, :256].sum() / named == pytest.approx(2 * 2**30, rel=1e-5)


@pytest.mark.parametrize("kind", ["hash", "sequence_hash", "domain", "domain_token"])
def test_a_map_is_made_again_alike_and_differs_between_seeds_and_layers(
    text_folder: Path, kind: str
) -> None:
    words = f"router={kind} model.num_experts=12 model.num_layers=3"
    config, corpus = made(text_folder, words)
    found = make_map(config, corpus)
    again = make_map(config, prepare(config.data))  # another object: nothing is remembered
    other = make_map(replace(config, seed=1), corpus)
    first = make_map(replace(config, router=replace(config.router, hash_layers=1)), corpus)
    assert found is not None
    assert again is not None
    assert other is not None
    assert first is not None
    assert found is not again
    assert found.hash == again.hash != other.hash
    assert (found.table[:1] == first.table).all()
    assert len(found.table) == 3
    assert len({layer.tobytes() for layer in found.table}) == 3
    read = from_bytes(found.to_bytes(), "map.npz", vocabulary=256, experts=12)
    assert read.hash == found.hash


def test_a_map_has_the_same_bits_on_every_machine() -> None:
    rows = assigned_in_turns(ZIPF, turns_needed(ZIPF, 16, 2), 16, 2, 0, "map", 0)
    table = np.concatenate([rows, drawn_rows(16, 2, 0)])[None].astype(np.int16)
    assert RoutingMap("hash", table).hash[:16] == "6b9631542df218a8"


@pytest.mark.parametrize("kind", ["hash", "domain_token"])
def test_a_file_of_another_vocabulary_is_refused(text_folder: Path, kind: str) -> None:
    config, corpus = made(text_folder, f"router={kind} model.num_experts=12")
    content = (make_map(config, corpus) or pytest.fail("a map")).to_bytes()
    with pytest.raises(RecordError, match="has experts for 256 tokens, and the model has 4096"):
        from_bytes(content, "map.npz", vocabulary=4096, experts=12)
    with pytest.raises(RecordError, match="is not a map of 6 experts"):
        from_bytes(content, "map.npz", vocabulary=256, experts=6)
    for broken in (b"", b"no map", content[:-40]):
        with pytest.raises(RecordError, match=r"map.npz: is not a map of experts"):
            from_bytes(broken, "map.npz", vocabulary=256, experts=12)


ERRORS: dict[str, Any] = {
    "router=domain model.num_experts=4": r"num_experts=4: .*3 domains.* use at least 6",
    "router=domain_token model.num_experts=8": r"num_experts=8: .*3 domains.* use at least 12",
    "router=domain data.domains=[digits]": r"one domain, digits; use router=sequence_hash",
    "router=domain_token data.domains=[digits]": r"one domain, digits; use router=hash",
}


@pytest.mark.parametrize("words", ERRORS)
def test_what_the_domains_do_not_allow_is_refused(text_folder: Path, words: str) -> None:
    config, corpus = made(text_folder, words)
    with pytest.raises(ConfigError, match=ERRORS[words]):
        check_map(config, corpus)


REFUSED = {
    "router.map=modulus": r"router.map=modulus: must be one of none, hash",
    "router.hash_layers=1": r"router.hash_layers=1: is for a prescribed router; add router=hash",
    "router=hash router.hash_layers=9": r"router.hash_layers=9: must be at most the \d layers",
    "router=domain data.heldout=[digits]": r"held-out domain \(digits\) has no experts",
    "data.domain_token=true data.heldout=[digits]": r"the token of a held-out domain \(digits\)",
    "data.domain_token=true data.mask_documents=true": r"leave out data.mask_documents",
    "router=hash router.random=true": r"router.random=True: would select experts",
    "router=hash method=bias": r"method.name=bias: would select experts",
    "router=hash router.gate=relu router.renormalize=false": r"router.gate=relu: would select",
    "router=hash router.start_experts=2": r"router.start_experts=2: would select",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_contradicts_a_map_is_refused(text_folder: Path, words: str) -> None:
    with pytest.raises(ConfigError, match=REFUSED[words]):
        made(text_folder, words)

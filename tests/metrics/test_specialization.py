"""Specialisation on constructed cases, against loops and against chance."""

import math

import numpy as np
import pytest
import torch

from moebench.metrics.specialization import (
    PERMUTATIONS,
    _given_token,
    coactivation,
    domain_counts,
    domain_frequency,
    domain_specialization,
    domain_specialization_given_position,
    domain_specialization_given_token,
    largest_partner_share,
    mutual_information,
    vocabulary_specialization,
)


def test_one_expert_a_domain_is_log2_of_their_number() -> None:
    counts = torch.eye(4).double()[None] * 100
    assert mutual_information(counts).item() == pytest.approx(2.0)


def test_equal_use_is_zero() -> None:
    assert mutual_information(torch.full((1, 3, 5), 7.0).double()).item() == pytest.approx(0)


def test_equals_a_loop_with_equal_weight_for_each_domain() -> None:
    counts = torch.tensor([[3.0, 1.0, 0.0], [10.0, 50.0, 40.0]]).double()
    given = [[c / sum(row) for c in row] for row in counts.tolist()]
    overall = [(a + b) / 2 for a, b in zip(*given, strict=True)]
    expected = sum(
        0.5 * p * math.log2(p / q)
        for row in given
        for p, q in zip(row, overall, strict=True)
        if p > 0
    )
    assert mutual_information(counts).item() == pytest.approx(expected)


def test_counts_are_summed_by_domain() -> None:
    counts = torch.arange(24).view(1, 4, 6)
    found = domain_counts(counts, torch.tensor([1, 0, 1, 1]), 2)
    assert found[0, 0].tolist() == counts[0, 1].tolist()
    assert found[0, 1].tolist() == counts[0, [0, 2, 3]].sum(0).tolist()


def test_is_zero_in_expectation_for_independent_routing() -> None:
    """Plain mutual information is biased upwards; less its chance value it is not."""
    generator = torch.Generator().manual_seed(0)
    domain = torch.arange(4).repeat_interleave(10)
    plain, corrected = [], []
    for _ in range(60):
        index = torch.randint(0, 8, (1, 40, 16), generator=generator)
        counts = torch.zeros(1, 40, 8).scatter_add(2, index, torch.ones(1, 40, 16))
        plain.append(mutual_information(domain_counts(counts, domain, 4)).item())
        corrected.append(domain_specialization(counts, domain, 4))
    found = torch.tensor(corrected).double()
    assert abs(found.mean()) < 3 * found.std() / 60**0.5
    assert sum(plain) / 60 > 5 * abs(found.mean())


def test_perfect_division_less_its_chance_value() -> None:
    domain = torch.arange(2).repeat_interleave(50)
    counts = torch.zeros(1, 100, 2)
    counts[0, :50, 0] = counts[0, 50:, 1] = 9
    assert domain_specialization(counts, domain, 2) == pytest.approx(1, abs=0.05)


def test_coactivation_counts_all_pairs_not_neighbours_alone() -> None:
    index = torch.tensor([[[[0, 2, 5], [0, 1, 5]]]])
    found = coactivation(index, 6)[0]
    assert found[0, 5] == found[5, 0] == 2, "first and last of a token's experts are a pair"
    assert found[0, 2] == 1
    assert found[1, 2] == 0
    assert found.diagonal().tolist() == [2, 1, 1, 0, 0, 2]


def test_a_slot_without_an_expert_is_in_no_pair() -> None:
    found = coactivation(torch.tensor([[[[0, -1, 2], [-1, -1, -1]]]]), 3)[0]
    assert found.tolist() == [[1, 0, 1], [0, 0, 0], [1, 0, 1]]


def given_token(index: torch.Tensor, token: torch.Tensor, domain: torch.Tensor, e: int) -> float:
    return domain_specialization_given_token(index, token, domain, e)


def test_given_the_token_a_router_that_sees_it_alone_says_nothing() -> None:
    """Domains of different vocabularies: all the mutual information is the token's."""
    generator = torch.Generator().manual_seed(0)
    domain = torch.arange(2).repeat_interleave(20)
    token = torch.randint(0, 6, (40, 30), generator=generator) + 3 * domain[:, None]
    index = (token // 3)[None, ..., None]
    counts = torch.nn.functional.one_hot(index[..., 0], 4).sum(2)
    assert domain_specialization(counts, domain, 2) > 0.1
    assert given_token(index, token, domain, 4) == pytest.approx(0, abs=1e-9)


def test_given_the_token_a_router_that_sees_the_domain_says_all() -> None:
    generator = torch.Generator().manual_seed(0)
    domain = torch.arange(4).repeat_interleave(50)
    token = torch.randint(0, 5, (200, 100), generator=generator)
    index = domain[:, None].expand(200, 100)[None, ..., None]
    assert given_token(index, token, domain, 4) == pytest.approx(2, abs=0.05)


def test_given_the_token_is_zero_in_expectation_for_routing_by_token_and_sequence() -> None:
    """Where tokens meet domains unevenly, and a sequence's tokens are alike."""
    generator = torch.Generator().manual_seed(0)
    domain = torch.arange(4).repeat_interleave(10)
    found = []
    for _ in range(40):
        token = torch.randint(0, 6, (40, 16), generator=generator) + 2 * domain[:, None]
        own = torch.randint(0, 3, (40, 1), generator=generator)  # a taste of the sequence
        noise = torch.randint(0, 2, (40, 16), generator=generator)
        found.append(given_token(((token + own + noise) % 8)[None, ..., None], token, domain, 8))
    values = torch.tensor(found).double()
    assert abs(values.mean()) < 3 * values.std() / 40**0.5


def test_given_the_token_equals_a_loop_before_its_chance_value() -> None:
    generator = torch.Generator().manual_seed(0)
    domain = torch.tensor([0, 0, 1, 1, 1])
    token = torch.randint(0, 3, (5, 20), generator=generator)
    index = torch.randint(0, 4, (1, 5, 20, 2), generator=generator)
    joint: dict[tuple[int, int, int], float] = {}
    for s in range(5):
        for t in range(20):
            for e in index[0, s, t].tolist():
                key = (int(token[s, t]), int(domain[s]), e)
                joint[key] = joint.get(key, 0) + 1 / (2 * (2 if domain[s] == 0 else 3) * 40)
    bits = 0.0
    for (x, d, e), p in joint.items():
        of_x = sum(q for key, q in joint.items() if key[0] == x)
        of_pair = sum(q for key, q in joint.items() if key[:2] == (x, d))
        of_expert = sum(q for key, q in joint.items() if (key[0], key[2]) == (x, e))
        bits += p * math.log2(p * of_x / (of_pair * of_expert))
    cells, numbers = np.unique(
        np.stack([token.numpy().ravel(), np.repeat(np.arange(5), 20)]),
        axis=1,
        return_inverse=True,
    )
    counts = np.zeros((cells.shape[1], 4), np.int64)
    np.add.at(counts, (numbers.ravel()[:, None], index[0].reshape(100, 2).numpy()), 1)
    label = domain.numpy()[cells[1]]
    assert _given_token([counts], cells[0], label, np.array([2.0, 3.0])) == pytest.approx(bits)


def test_given_the_position_equals_a_loop() -> None:
    draw = np.random.default_rng(0)
    index, domain = draw.integers(0, 3, (1, 9, 4, 2)), np.array([0, 0, 0, 1, 1, 1, 1, 1, 2])

    def bits(label: np.ndarray) -> float:
        total = 0.0
        for place in range(4):
            share = np.zeros((3, 3))
            for sequence, own in enumerate(label):
                for expert in index[0, sequence, place]:
                    share[own, expert] += 1 / (2 * 3 * (label == own).sum())
            for own, expert in np.ndindex(3, 3):
                if p := share[own, expert]:
                    total += p * math.log2(p / share[own].sum() / share[:, expert].sum()) / 4
        return float(total)

    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(9, generator=generator).numpy() for _ in range(PERMUTATIONS)]
    chance = np.mean([bits(domain[order]) for order in orders])
    found = domain_specialization_given_position(torch.from_numpy(index), torch.tensor(domain), 3)
    assert found == pytest.approx(bits(domain) - chance, abs=1e-6)


def test_domain_frequency_sums_to_top_k_and_is_k_of_e_when_even() -> None:
    found = domain_frequency(torch.full((1, 2, 8), 5.0).double(), 2)
    assert (found == 2 / 8).all()
    assert found.sum(-1).tolist() == [[2.0, 2.0]]


def test_vocabulary_of_one_expert_a_token_of_chance_and_by_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    token = torch.randint(0, 10, (40, 50), generator=generator)
    assert vocabulary_specialization((token % 4)[None, ..., None], token, 4) == 1
    random = torch.rand(2, 40, 50, 8, generator=generator).argsort(-1)[..., :2]
    assert vocabulary_specialization(random, token, 8) == pytest.approx(2 / 8, abs=0.02)
    hits = seen = 0
    for picked, taken in ((0, 1), (1, 0)):
        for x in range(10):
            tally = [0] * 8
            for e in random[0, picked::2][token[picked::2] == x].flatten().tolist():
                tally[e] += 1
            rows = random[0, taken::2][token[taken::2] == x].tolist()
            hits += sum(tally.index(max(tally)) in row for row in rows)
            seen += len(rows)
    assert vocabulary_specialization(random[:1], token, 8) == pytest.approx(hits / seen)


def test_two_experts_always_together_and_partners_by_chance() -> None:
    pairs = torch.tensor([[0, 1], [2, 3]])[torch.arange(20) % 2].view(1, 2, 10, 2)
    assert largest_partner_share(coactivation(pairs, 6)) == 1
    random = torch.rand(1, 40, 500, 8, generator=torch.Generator().manual_seed(0))
    found = coactivation(random.argsort(-1)[..., :3], 8)
    assert largest_partner_share(found) == pytest.approx(2 / 7, abs=0.02)

"""Specialisation on constructed cases, against loops and against chance."""

import math

import pytest
import torch

from moebench.metrics.specialization import (
    coactivation,
    domain_counts,
    domain_specialization,
    mutual_information,
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

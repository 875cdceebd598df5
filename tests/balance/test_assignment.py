"""Balanced assignments against literal loops, all permutations, and the published bound."""

import math
from itertools import permutations, product

import pytest
import torch
from torch import Tensor

from moebench.balance import assignment
from moebench.balance.assignment import (
    base_assignment,
    expert_choice,
    leaked_bits,
    sinkhorn,
    top_k_mask,
)
from moebench.errors import ConfigError


def scores(groups: int, tokens: int, experts: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    liking = 2 * torch.randn(groups, 1, experts, generator=draw, dtype=torch.float64)
    return liking + torch.randn(groups, tokens, experts, generator=draw, dtype=torch.float64)


def test_each_expert_takes_its_highest_tokens() -> None:
    given = scores(2, 12, 4).softmax(-1)
    mask = expert_choice(given, 2, capacity_factor=1.5)
    for group, expert in product(range(2), range(4)):
        column = given[group, :, expert].tolist()
        best = sorted(range(12), key=lambda token: -column[token])[:9]  # 1.5 * 12 * 2 / 4
        assert mask[group, :, expert].nonzero().flatten().tolist() == sorted(best)


def test_a_capacity_is_rounded_up_but_not_by_rounding_errors() -> None:
    given = scores(1, 160, 16)
    assert expert_choice(given, 16, capacity_factor=0.1).sum(1).unique().tolist() == [16]
    assert expert_choice(scores(1, 5, 4), 1).sum(1).unique().tolist() == [2]


@pytest.mark.parametrize("factor", [0.0, 2.5])
def test_a_capacity_beyond_the_group_is_refused(factor: float) -> None:
    with pytest.raises(ConfigError, match="must be between 1 and the 8 of a group"):
        expert_choice(scores(1, 8, 4), 2, capacity_factor=factor)


def test_expert_choice_leaks_more_than_fifty_bits() -> None:
    assert leaked_bits(layers=9, experts=16, top_k=2) == pytest.approx(50.5, abs=0.05)
    with pytest.raises(ConfigError, match="top_k=4"):
        leaked_bits(layers=1, experts=4, top_k=4)


def test_expert_choice_depends_on_later_tokens_and_top_k_does_not() -> None:
    given = scores(1, 8, 4).softmax(-1)
    changed = given.clone()
    changed[:, -1] = 1.0  # the last token is now what every expert likes best
    assert not expert_choice(given, 1)[:, :-1].equal(expert_choice(changed, 1)[:, :-1])
    assert top_k_mask(given, 1)[:, :-1].equal(top_k_mask(changed, 1)[:, :-1])


def test_ties_go_to_the_first() -> None:
    assert top_k_mask(torch.zeros(1, 1, 4), 2).tolist() == [[[True, True, False, False]]]
    assert expert_choice(torch.zeros(1, 4, 2), 1)[0, :, 1].tolist() == [True, True, False, False]


@pytest.mark.parametrize("seed", range(5))
def test_base_is_the_best_of_all_permutations(seed: int) -> None:
    given = scores(2, 6, 3, seed)
    mask = base_assignment(given, 1)
    for group in range(2):
        best = max(
            sum(given[group, token, place // 2].item() for token, place in enumerate(order))
            for order in permutations(range(6))
        )
        assert given[group][mask[group]].sum().item() == pytest.approx(best, abs=1e-12)
    assert mask.sum(-1).unique().tolist() == [1]
    assert mask.sum(-2).unique().tolist() == [2]


def test_base_differs_from_top_k_where_experts_are_crowded() -> None:
    given = scores(1, 12, 3, seed=2)
    assert given[base_assignment(given, 1)].sum() < given[top_k_mask(given, 1)].sum()


@pytest.mark.parametrize(("tokens", "experts"), [(8, 4), (7, 4), (4, 3), (5, 5), (1, 3)])
def test_base_gives_every_token_different_experts_and_every_expert_as_many(
    tokens: int, experts: int
) -> None:
    for seed, top_k in product(range(20), range(1, experts + 1)):
        mask = base_assignment(scores(1, tokens, experts, seed), top_k)[0]
        assert mask.sum(1).unique().tolist() == [top_k]
        assert mask.sum(0).max() <= math.ceil(tokens * top_k / experts)


def test_base_second_round_is_the_best_without_the_first() -> None:
    given = scores(1, 4, 4, seed=3)[0]
    first, both = base_assignment(given[None], 1)[0], base_assignment(given[None], 2)[0]
    best = max(
        sum(given[token, expert].item() for token, expert in enumerate(order))
        for order in permutations(range(4))
        if not any(first[token, expert] for token, expert in enumerate(order))
    )
    assert given[both & ~first].sum().item() == pytest.approx(best, abs=1e-12)


def test_base_names_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignment, "BASE_LIMIT", 63)
    with pytest.raises(ConfigError, match="a matrix of 64 entries, and at most 63 are allowed"):
        base_assignment(scores(1, 8, 4), 1)


def test_base_refuses_scores_that_are_not_finite() -> None:
    with pytest.raises(ConfigError, match="not finite"):
        base_assignment(scores(1, 4, 2).fill_(float("nan")), 1)


def literal_sinkhorn(z: Tensor, rounds: int) -> Tensor:
    """Rows and columns scaled in turn, number by number."""
    tokens, experts = z.shape
    table = [[math.exp(z[t, e].item()) for e in range(experts)] for t in range(tokens)]
    for _ in range(rounds):
        for e in range(experts):
            total = sum(table[t][e] for t in range(tokens))
            for t in range(tokens):
                table[t][e] /= total * experts
        for t in range(tokens):
            total = sum(table[t])
            table[t] = [each / (total * tokens) for each in table[t]]
    return torch.tensor(table, dtype=torch.float64)


def test_sinkhorn_is_rows_and_columns_scaled_in_turn() -> None:
    given = scores(2, 9, 4)
    found = sinkhorn(given, tolerance=1e-12, max_iterations=1000).exp()
    for group in range(2):
        assert torch.allclose(found[group], literal_sinkhorn(given[group], 300), atol=1e-10)
    assert torch.allclose(found.sum(-1), torch.full((2, 9), 1 / 9).double(), atol=1e-14)
    assert torch.allclose(found.sum(-2), torch.full((2, 4), 1 / 4).double(), atol=1e-11)


def test_sinkhorn_evens_the_load() -> None:
    given = scores(4, 64, 8)
    loads = [top_k_mask(each, 2).sum(1).amax().item() for each in (given, sinkhorn(given))]
    assert loads[0] > 40  # of 64 tokens, where 16 would be even
    assert loads[1] < 24


def test_sinkhorn_bears_large_logits_and_stops() -> None:
    given = 1e4 * scores(1, 16, 4).float()  # exp of which overflows
    found = sinkhorn(given, max_iterations=3)
    assert found.isfinite().all()
    assert torch.allclose(found.exp().sum(-1), torch.full((1, 16), 1 / 16))
    # pi has a single expert above 0 in most rows, yet the second one is told
    assert (found.exp() > 0).sum(-1).tolist()[0].count(1) > 8
    assert top_k_mask(found, 2).equal(top_k_mask(sinkhorn(given.double(), max_iterations=3), 2))


def test_a_group_is_assigned_alike_whatever_shares_its_pass() -> None:
    easy, hard = scores(1, 16, 4), 8 * scores(1, 16, 4, seed=5)
    together = torch.cat([easy, hard])
    for assign in (
        sinkhorn,
        lambda given: base_assignment(given, 2),
        lambda given: expert_choice(given, 2),
    ):
        apart = torch.cat([assign(easy), assign(hard)])
        assert assign(together).equal(apart)

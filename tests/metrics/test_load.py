"""Load metrics against literal loops, constructed cases and random routing."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from moebench.balance import moved_from
from moebench.metrics.load import (
    CAPACITY_FACTOR,
    coefficient_of_variation,
    dead_experts,
    drop_rate,
    gini,
    intervention_rate,
    load_entropy,
    max_violation,
    normalized_entropy,
    padding,
    random_load,
    random_max_violation,
    utilization,
    within_even_share,
)

EVEN, COLLAPSED = torch.full((8,), 5), torch.tensor([40, 0, 0, 0, 0, 0, 0, 0])


def test_even_load() -> None:
    assert (utilization(EVEN) == 1).all()
    assert max_violation(EVEN) == 0
    assert coefficient_of_variation(EVEN) == 0
    assert load_entropy(EVEN).item() == pytest.approx(1)
    assert dead_experts(EVEN) == 0


def test_collapse_to_one_expert() -> None:
    assert utilization(COLLAPSED)[0] == 8
    assert max_violation(COLLAPSED) == 7
    assert coefficient_of_variation(COLLAPSED).item() == pytest.approx(math.sqrt(7))
    assert load_entropy(COLLAPSED).item() == pytest.approx(1 / 8)
    assert dead_experts(COLLAPSED).item() == pytest.approx(7 / 8)


def test_equal_literal_loops_and_keep_leading_axes() -> None:
    counts = torch.randint(0, 9, (3, 2, 5), generator=torch.Generator().manual_seed(0))
    for one in range(3):
        for two in range(2):
            row = [int(each) for each in counts[one, two]]
            mean = sum(row) / 5
            spread = math.sqrt(sum((each - mean) ** 2 for each in row) / 5)
            entropy = -sum(c / sum(row) * math.log(c / sum(row)) for c in row if c)
            assert max_violation(counts)[one, two].item() == pytest.approx(max(row) / mean - 1)
            assert coefficient_of_variation(counts)[one, two].item() == pytest.approx(spread / mean)
            assert load_entropy(counts)[one, two].item() == pytest.approx(math.exp(entropy) / 5)
            assert dead_experts(counts)[one, two].item() == pytest.approx(row.count(0) / 5)


@pytest.mark.parametrize(("tokens", "experts", "top_k", "known"), [(512, 16, 2, 0.22)])
def test_random_routing_has_the_known_violation(
    tokens: int, experts: int, top_k: int, known: float
) -> None:
    assert random_max_violation(experts, top_k, tokens) == pytest.approx(known, abs=0.005)


@pytest.mark.parametrize(("tokens", "experts", "top_k"), [(64, 8, 2), (300, 16, 4), (512, 64, 4)])
def test_random_routing_equals_a_simulation(tokens: int, experts: int, top_k: int) -> None:
    draw = np.random.default_rng(1)
    found = []
    for _ in range(400):
        choice = draw.random((tokens, experts)).argsort(1)[:, :top_k]
        counts = np.bincount(choice.ravel(), minlength=experts)
        found.append(counts.max() / counts.mean() - 1)
    error = float(np.std(found)) / 20
    assert abs(random_max_violation(experts, top_k, tokens) - np.mean(found)) < 4 * error


def rate(expert_index: torch.Tensor, own_index: torch.Tensor) -> float:
    """The intervention rate of tokens of one sequence."""
    filled = torch.bincount(expert_index[expert_index >= 0], minlength=8)
    moved = moved_from(own_index[None], expert_index[None])
    return intervention_rate(moved[None], filled[None, None]).item()


def test_intervention_is_the_share_of_experts_that_scores_would_not_have_selected() -> None:
    own = torch.tensor([[0, 1], [2, 3]])
    assert rate(own.flip(-1), own) == 0
    assert rate(torch.tensor([[0, 2], [2, 3]]), own) == 0.25
    # three experts, one of them not its own, and slots without any
    assert rate(torch.tensor([[0, 2, -1], [3, -1, -1]]), own) == pytest.approx(1 / 3)


def test_intervention_equals_a_loop_and_chance_where_the_bias_decides_alone() -> None:
    scores = torch.rand(3000, 8, generator=torch.Generator().manual_seed(0))
    own = scores.topk(2).indices
    for bias, by_chance in ((0.2, None), (9.0, 1 - 2 / 8)):
        moved = (scores + bias * (torch.arange(8) < 2)).topk(2).indices
        found = rate(moved, own)
        pairs = zip(moved.tolist(), own.tolist(), strict=True)
        kept = sum(len(set(a) & set(b)) for a, b in pairs)
        assert found == pytest.approx(1 - kept / 6000)
        assert by_chance is None or found == pytest.approx(by_chance, abs=0.03)


def test_gini_and_drops_of_even_load_and_of_collapse() -> None:
    assert gini(EVEN) == 0
    assert gini(COLLAPSED).item() == pytest.approx(7 / 8)
    assert drop_rate(EVEN, 1.0) == 0
    assert drop_rate(COLLAPSED, 2.0).item() == pytest.approx(30 / 40)
    assert drop_rate(COLLAPSED, 8.0) == 0


def test_gini_and_drops_equal_literal_loops() -> None:
    counts = torch.randint(0, 9, (3, 2, 5), generator=torch.Generator().manual_seed(1))
    for one in range(3):
        for two in range(2):
            row = [int(each) for each in counts[one, two]]
            apart = sum(abs(a - b) for a in row for b in row)
            assert gini(counts)[one, two].item() == pytest.approx(apart / (2 * 5 * sum(row)))
            for factor in (1.0, 1.1, 1.5):
                room = math.ceil(Fraction(str(factor)) * sum(row) / 5)
                lost = sum(max(0, c - room) for c in row) / sum(row)
                assert drop_rate(counts, factor)[one, two].item() == pytest.approx(lost)
                empty = sum(max(0, room - c) for c in row) / (5 * room)
                assert padding(counts, factor)[one, two].item() == pytest.approx(empty)


@pytest.mark.parametrize(("tokens", "experts", "top_k"), [(40, 8, 2), (512, 16, 2), (300, 16, 4)])
def test_every_load_under_random_routing_equals_a_simulation(
    tokens: int, experts: int, top_k: int
) -> None:
    draw = np.random.default_rng(1)
    counts = torch.stack(
        [
            torch.bincount(
                torch.from_numpy(draw.random((tokens, experts)).argsort(1)[:, :top_k].ravel()),
                minlength=experts,
            )
            for _ in range(400)
        ]
    )
    simulated = {
        "max_vio": max_violation(counts),
        "cv": coefficient_of_variation(counts),
        "entropy": load_entropy(counts),
        "normalized_entropy": normalized_entropy(counts),
        "within_even_share": within_even_share(counts),
        "gini": gini(counts),
        "dead_experts": dead_experts(counts),
        "drop_rate": drop_rate(counts, CAPACITY_FACTOR),
        "padding": padding(counts, CAPACITY_FACTOR),
    }
    known = random_load(experts, top_k, tokens)
    assert known.keys() == simulated.keys()
    for name, each in simulated.items():
        error = float(each.std()) / 20
        # below counts of some dozens, a scaled multinomial is a little off in the tail
        assert abs(known[name] - float(each.mean())) < 4 * error + 0.005, name

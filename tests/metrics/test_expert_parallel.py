"""The cost of imbalance against literal loops, constructed cases and random routing."""

import numpy as np
import pytest

from moebench.metrics.expert_parallel import (
    PLACEMENTS,
    cost,
    greedy,
    main_ranks,
    random_slowdown,
    rank_numbers,
    redundant,
    round_robin,
    sent_elsewhere,
    slowdown,
)

RANDOM = np.random.default_rng(0).integers(0, 50, (3, 8, 16))  # layers, micro-batches, experts
LOAD = RANDOM.sum(1)


def test_equals_a_loop_over_tokens_ranks_and_dispatches() -> None:
    for name, place in PLACEMENTS.items():
        for ranks in (2, 4, 8):
            placement = place(LOAD, ranks)
            longest = mean = moved = 0.0
            for layer in range(3):
                for first in range(0, 8, ranks):
                    load = [0.0] * ranks
                    for source in range(ranks):
                        for expert in range(16):
                            count = int(RANDOM[layer, first + source, expert])
                            for rank in range(ranks):
                                part = count * placement[layer, expert, rank]
                                load[rank] += part
                                moved += part * (rank != source)
                    longest += max(load)
                    mean += sum(load) / ranks
            assert slowdown(RANDOM, placement) == pytest.approx(longest / mean), name
            assert sent_elsewhere(RANDOM, placement) == pytest.approx(moved), name


def test_even_load_costs_nothing_and_collapse_costs_all_ranks() -> None:
    collapsed = np.zeros((2, 4, 8))
    collapsed[..., 3] = 10
    for place in PLACEMENTS.values():
        assert slowdown(np.ones((2, 4, 8)), place(np.ones((2, 8)), 4)) == pytest.approx(1)
    for place in (round_robin, greedy):
        assert slowdown(collapsed, place(collapsed.sum(1), 4)) == pytest.approx(4)
    assert slowdown(collapsed, redundant(collapsed.sum(1), 4)) == pytest.approx(1), "4 copies"


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_placements_keep_every_expert_and_the_room_of_every_rank(ranks: int) -> None:
    for name, place in PLACEMENTS.items():
        held = place(LOAD, ranks)
        assert held.sum(-1) == pytest.approx(1)
        slots = (held > 0).sum(1)
        room = 16 // ranks + (name == "redundant")
        assert (slots <= room).all()
        assert name == "redundant" or (slots == room).all()


def test_placing_by_the_loads_at_hand_helps_and_copies_help_more() -> None:
    uneven = np.geomspace(1, 40, 16) * np.ones((2, 8, 1))
    for ranks in (4, 8):
        plain, packed, copied = (
            slowdown(uneven, place(uneven.sum(1), ranks)) for place in PLACEMENTS.values()
        )
        assert plain > packed > copied >= 1


@pytest.mark.parametrize("ranks", [2, 8])
def test_random_routing_equals_a_simulation(ranks: int) -> None:
    """Wherever experts lie by the loads of an earlier step, which foretell nothing here."""
    draw, found, before = np.random.default_rng(1), {round_robin: [], greedy: []}, np.ones((1, 16))
    for _ in range(200):
        choice = draw.random((ranks, 64, 16)).argsort(-1)[..., :2].reshape(ranks, -1)
        counts = np.stack([np.bincount(each, minlength=16) for each in choice])
        for place, each in found.items():
            each.append(slowdown(counts[None], place(before, ranks)))
        before = counts.sum(0, keepdims=True)
    for each in found.values():
        error = float(np.std(each)) / 200**0.5
        assert abs(random_slowdown(16, 2, 64, ranks) - np.mean(each)) < 4 * error


def test_ranks_divide_experts_and_micro_batches() -> None:
    assert rank_numbers(16, 8) == [2, 4, 8]
    assert rank_numbers(64, 128) == [2, 4, 8, 16, 32, 64]
    assert rank_numbers(12, 6) == [2]
    assert main_ranks([2, 4, 8, 16]) == 8
    assert main_ranks([]) is None
    assert cost(np.ones((1, 1, 16)), np.zeros((1, 16)), 4) == {}


def test_names_and_bytes_of_a_step() -> None:
    found = cost(RANDOM, LOAD, 512)
    assert found["ep/slowdown"] == found["ep/slowdown/8"] == slowdown(RANDOM, round_robin(LOAD, 8))
    assert found["ep/slowdown_greedy"] == found["ep/slowdown_greedy/8"]
    away = sent_elsewhere(RANDOM, round_robin(LOAD, 8))
    assert found["ep/all_to_all_bytes"] == pytest.approx(512 * away)
    assert away / RANDOM.sum() == pytest.approx(7 / 8, abs=0.03)

"""Quantile balancing: the worked example, sorting, and the union of passes and ranks."""

import math

import pytest
import torch
from torch import Tensor

from moebench.balance.assignment import top_k_mask
from moebench.balance.quantile import kth_largest, margins, quantile_bias
from moebench.errors import ConfigError

SCORES = torch.tensor(
    [[2.0, 0.5, -2.0, -1.0], [2.0, 3.0, 0.5, -1.0], [0.0, 2.0, -0.5, -1.0], [2.0, 0.0, -1.5, -1.0]]
)


def loads(scores: Tensor, bias: Tensor) -> list[int]:
    return top_k_mask(scores + bias, 2).sum(-2).tolist()


def test_one_update_evens_the_worked_example() -> None:
    zero = torch.zeros(4)
    assert loads(SCORES, zero) == [4, 4, 0, 0]
    found = margins(SCORES, zero, 2)
    assert found[:, 0].tolist() == [3.0, 1.5, 0.5, 3.0]
    bias = quantile_bias([found[None]], 2, 4)[0]
    assert bias.tolist() == [-1.0, -1.0, 1.0, 1.0]  # (-1.5, -1.5, 0.5, 0.5) less its mean
    assert loads(SCORES, bias) == [2, 2, 2, 2]


def test_the_quantile_is_that_of_the_union_and_no_mean() -> None:
    ranks = [torch.tensor([3.0, 1.5])[None, :, None], torch.tensor([0.5, 3.0])[None, :, None]]
    each = [kth_largest(rank, 2).item() for rank in ranks]
    assert sum(each) / 2 == 1.0
    assert kth_largest(torch.cat(ranks, 1), 3).item() == 1.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kth_largest_is_that_of_sorting(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(2, 50, 3, generator=draw, dtype=dtype)
    values[0, :10] = values[0, 10:20]  # ties
    values[1, :, 0] = torch.tensor([-0.0, 0.0, 1e-42, -1e-42, 3e38] * 10)
    falling = values.sort(1, descending=True).values
    for k in (1, 2, 25, 49, 50):
        assert kth_largest(values, k).equal(falling[:, k - 1])


def test_passes_and_ranks_give_the_bits_of_the_whole() -> None:
    draw = torch.Generator().manual_seed(1)
    whole = torch.randn(3, 64, 8, generator=draw)
    expected = quantile_bias([whole], 2, 64)
    assert quantile_bias(whole.split(16, dim=1), 2, 64).equal(expected)

    # two ranks, of unlike sizes, that meet at every sum: here one after the other, by replay
    ranks = list(whole.split([48, 16], dim=1))
    sums: list[Tensor] = []
    while True:
        added: list[Tensor] = []
        results = []
        for rank in ranks:
            results.append(_with_known_sums(rank, sums, added))
        if all(each is not None for each in results):
            break
        sums.append(added[0] + added[1])
    assert all(each is not None and each.equal(expected) for each in results)
    assert len(sums) == 4  # all-reduces in fp32


class UnknownSumError(Exception):
    pass


def _with_known_sums(rank: Tensor, sums: list[Tensor], added: list[Tensor]) -> Tensor | None:
    """This rank's bias given the sums of the first rounds, or None, and its counts of the next."""
    done = 0

    def sum_counts(counts: Tensor) -> Tensor:
        nonlocal done
        done += 1
        if done > len(sums):
            added.append(counts)
            raise UnknownSumError
        return sums[done - 1]

    try:
        return quantile_bias([rank], 2, 64, sum_counts=sum_counts)
    except UnknownSumError:
        return None


def test_updates_converge_to_an_even_load() -> None:
    """From loads far from even: the exact dual update, repeated on the same tokens."""
    draw = torch.Generator().manual_seed(2)
    scores = torch.randn(256, 8, generator=draw) + 2 * torch.randn(8, generator=draw)
    bias = torch.zeros(8)
    before = max(loads(scores, bias))
    for _ in range(20):
        bias = quantile_bias([margins(scores, bias, 2)[None]], 2, 256)[0]
    assert before > 150
    assert max(loads(scores, bias)) <= 66  # where 64 is even


def test_all_experts_selected_leaves_no_threshold() -> None:
    with pytest.raises(ConfigError, match="fewer than 4"):
        margins(SCORES, torch.zeros(4), 4)


def test_margins_are_a_loop() -> None:
    bias = torch.tensor([0.3, -0.2, 0.1, -0.2])
    found = margins(SCORES, bias, 2)
    for token in range(4):
        biased = sorted((SCORES[token] + bias).tolist(), reverse=True)
        for expert in range(4):
            expected = SCORES[token, expert].item() - biased[2]
            assert math.isclose(found[token, expert].item(), expected, abs_tol=1e-6)

"""Sparsemax against a projection by brute force, and its gradient by differences."""

from itertools import combinations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from moebench.model.gate import sparsemax


def projected(z: Tensor) -> Tensor:
    """The nearest point of the simplex: the best of all supports' nearest points."""
    best, found = float("inf"), z
    for size in range(1, len(z) + 1):
        for support in combinations(range(len(z)), size):
            index = list(support)
            point = torch.zeros_like(z)
            point[index] = z[index] - (z[index].sum() - 1) / size
            distance = (point - z).square().sum().item()
            if (point >= 0).all() and distance < best:
                best, found = distance, point
    return found


def test_is_the_projection_on_the_simplex() -> None:
    logits = 1.5 * torch.randn(40, 5, dtype=torch.float64, generator=torch.manual_seed(0))
    found = sparsemax(logits)
    assert torch.allclose(found, torch.stack([projected(z) for z in logits]), atol=1e-14)
    assert len((found > 0).sum(-1).unique()) > 2  # supports of several sizes


def test_gradient_is_that_of_differences() -> None:
    logits = torch.randn(6, 4, dtype=torch.float64, generator=torch.manual_seed(1))
    assert gradcheck(sparsemax, logits.requires_grad_())


@pytest.mark.parametrize("shift", [1e6, -1e6])
def test_large_logits_keep_their_differences(shift: float) -> None:
    logits = torch.tensor([[0.5, 0.25, -2.0]])
    assert sparsemax(logits + shift).tolist() == [[0.625, 0.375, 0.0]]


def test_ties_share_alike_and_one_far_ahead_takes_all() -> None:
    assert sparsemax(torch.zeros(3, 4)).tolist() == [[0.25] * 4] * 3
    assert sparsemax(torch.tensor([9.0, 1.0, 1.0])).tolist() == [1.0, 0.0, 0.0]

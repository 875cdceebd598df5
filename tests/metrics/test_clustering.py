"""Domains that use experts alike are put together."""

import numpy as np
import pytest

from moebench.metrics.clustering import domain_tree, expert_vectors


def test_distances_are_hellinger() -> None:
    counts = np.array([[[9, 0, 0], [0, 4, 0]], [[1, 1, 0], [1, 1, 0]]])
    one, other = expert_vectors(counts)
    assert np.linalg.norm(one - other) / np.sqrt(2 * 2) == pytest.approx(np.sqrt(1 / 2))
    merges = domain_tree(counts)
    assert merges[0, 2] == pytest.approx(np.sqrt(1 / 2))


def test_like_domains_are_merged_first() -> None:
    kinds = np.array([[8, 2, 0, 0], [0, 0, 5, 5]])
    counts = kinds[[0, 1, 0, 1]][None] * np.array([1, 2, 3, 4])[:, None]
    merges = domain_tree(counts)
    assert {frozenset(pair) for pair in merges[:2, :2]} == {frozenset({0, 2}), frozenset({1, 3})}
    assert merges[:2, 2] == pytest.approx(0)
    assert merges[2, 2] == pytest.approx(1), "nothing in common"

"""A tree of the domains by the experts that they share."""

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import average
from scipy.spatial.distance import pdist


def shares(counts: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """[layers, domains, experts] p(expert | domain), 0 for a domain without counts."""
    counts = np.asarray(counts, np.float64)
    total = counts.sum(-1, keepdims=True)
    return np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)


def expert_vectors(counts: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """[domains, layers * experts] square roots of each layer's p(expert | domain).

    Their Euclidean distance over sqrt(2 * layers) is the (quadratic mean over layers of the)
    Hellinger distance: 0 for domains that use experts alike, 1 for domains that share none.

    Args:
        counts: [layers, domains, experts].
    """
    roots = np.sqrt(shares(counts))
    return roots.swapaxes(0, 1).reshape(roots.shape[1], -1)


def domain_tree(counts: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The merges of a tree of the domains that puts similar ones together.

    Args:
        counts: [layers, domains, experts], of at least two domains.

    Returns:
        scipy's average linkage of the Hellinger distances, [domains - 1, 4].
    """
    counts = np.asarray(counts)
    return average(pdist(expert_vectors(counts)) / np.sqrt(2 * len(counts)))

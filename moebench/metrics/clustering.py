"""Which domains share experts: a tree of domains by their expert vectors."""

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import average, leaves_list
from scipy.spatial.distance import pdist


def shares(counts: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """[layers, domains, experts] p(expert | domain) of counts, 0 in a domain without any."""
    counts = np.asarray(counts, np.float64)
    total = counts.sum(-1, keepdims=True)
    return np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)


def expert_vectors(counts: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """[domains, layers * experts] square roots of each layer's p(expert | domain).

    Their Euclidean distance over sqrt(2 * layers) is the (quadratic mean over layers of the)
    Hellinger distance: 0 for domains that use experts alike, 1 for those that share none.

    Args:
        counts: [layers, domains, experts].
    """
    roots = np.sqrt(shares(counts))
    return roots.swapaxes(0, 1).reshape(roots.shape[1], -1)


def domain_tree(counts: npt.ArrayLike) -> tuple[list[int], npt.NDArray[np.float64]]:
    """Domains in an order that puts like ones together, and the merges that made it.

    Args:
        counts: [layers, domains, experts], of two domains at least.

    Returns:
        The order; and average linkage as scipy gives it, [domains - 1, 4], of Hellinger distances.
    """
    counts = np.asarray(counts)
    merges = average(pdist(expert_vectors(counts)) / np.sqrt(2 * len(counts)))
    return [int(each) for each in leaves_list(merges)], merges

"""How much the expert frequencies of micro-batches differ, beside what chance alone makes of them.

Within a pool (the micro-batches of a step), deal the pool's tokens to its micro-batches at random,
without replacement, each token with all its experts. Micro-batch m of T_m tokens then has a
hypergeometric count of expert i, and with p_i the share of the pool's T tokens that chose it

    E[ sum_m (c_mi - T_m p_i)^2 / T_m ] = (M - 1) T / (T - 1) p_i (1 - p_i)

exactly, whatever the T_m and however experts go together. The ratio of the observed sum to this,
both summed over experts, layers and pools, is 1 in expectation if micro-batches differ by chance
alone. It is about 1 + (T_m - 1) r, where r is the correlation of two tokens of a micro-batch.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2

Floats = npt.NDArray[np.float64]

LEVEL = 0.95  # of the interval


class Dispersion(NamedTuple):
    """The spread of micro-batches around their pools.

    Attributes:
        ratio: observed over expected; 1 by chance.
        low, high: ends of its 95 % interval.
        by_layer: [layers] the ratio of each layer; nan where all tokens choose the same experts.
        excess: E sum_i var(f_i), by which the balance loss over micro-batches exceeds that over
            pools if probabilities equal frequencies (P = f); mean over layers.
        chance: of that, what tokens dealt at random would show.
        micro_batches, pools: that were compared.
    """

    ratio: float
    low: float
    high: float
    by_layer: list[float]
    excess: float
    chance: float
    micro_batches: int
    pools: int


def dispersion(counts: npt.ArrayLike, pool: npt.ArrayLike, top_k: int) -> Dispersion | None:
    """Compare the micro-batches of each pool; None if no pool has two, or none can differ.

    Args:
        counts: [micro_batches, layers, experts] assignments; in each layer some, and at most one
            of a token to each expert.
        pool: [micro_batches] numbers of their pools, such as steps.
        top_k: experts of a token.
    """
    counts, pool = np.asarray(counts, np.float64), np.asarray(pool)
    layers, experts = counts.shape[1:]
    deviations, tokens, expected = [], [], np.zeros(layers)
    pools = 0
    for name in np.unique(pool):
        inside = counts[pool == name]
        if len(inside) < 2:
            continue
        pools += 1
        size = inside.sum(2) / top_k  # [micro-batches, layers]
        whole = size.sum(0)
        share = inside.sum(0) / whole[:, None]
        gap = inside - size[..., None] * share
        deviations.append(gap / np.sqrt(size)[..., None])
        tokens.append(size)
        variance = (share * (1 - share)).sum(1)
        expected += (len(inside) - 1) * whole / (whole - 1) * variance
    if not expected.sum():
        return None
    deviation = np.concatenate(deviations)  # rows of a pool sum to 0 if weighted by sqrt(T_m)
    observed = (deviation**2).sum((0, 2))
    free = len(deviation) - pools
    ratio = float(observed.sum() / expected.sum())
    low, high = _interval(ratio, deviation.reshape(len(deviation), -1), free)
    # variance of f, over micro-batches: E sum_i (c_mi / (k T_m) - f_i)^2
    to_excess = experts / top_k**2 / np.concatenate(tokens).mean(0) / free
    with np.errstate(invalid="ignore", divide="ignore"):
        by_layer = (observed / expected).tolist()
    return Dispersion(
        ratio=ratio,
        low=low,
        high=high,
        by_layer=by_layer,
        excess=float((observed * to_excess).mean()),
        chance=float((expected * to_excess).mean()),
        micro_batches=len(deviation),
        pools=pools,
    )


def _interval(ratio: float, deviation: Floats, free: int) -> tuple[float, float]:
    """The ratio's interval, as of a sum of squares with its effective degrees of freedom.

    With covariance S of a micro-batch's deviations, the sum of squares of all has mean free tr S
    and variance 2 free tr S^2, as has a multiple of chi-square with free (tr S)^2 / tr S^2 degrees
    (Satterthwaite). S is estimated over micro-batches, so layers and experts may go together, and
    tr S^2 without bias. The squares are taken to be no more scattered than a normal's.

    Args:
        deviation: [micro_batches, values].
        free: micro-batches less pools.
    """
    if not ratio:
        return 0.0, 0.0
    products = min((deviation.T, deviation), key=len)
    gram = products @ products.T / free
    trace, most = float(np.trace(gram)), free * deviation.shape[1]
    squares = float((gram**2).sum())
    if free > 1:
        squares = (squares - trace**2 / free) * free**2 / ((free - 1) * (free + 2))
    degrees = min(most, free * trace**2 / squares) if squares > 0 else most
    tail = (1 - LEVEL) / 2
    low, high = chi2.ppf((tail, 1 - tail), max(1.0, degrees))
    return ratio * degrees / float(high), ratio * degrees / float(low) if low else math.inf

"""Nats, perplexity and bits per byte, by domain and as the unweighted mean over domains.

Cross-entropy only: no balance term enters.
"""

import math
from collections.abc import Sequence

import numpy as np


def quality(
    prefix: str,
    nats: np.ndarray,
    tokens: int,
    text_bytes: np.ndarray,
    domain: np.ndarray,
    domains: Sequence[str],
) -> dict[str, float]:
    """Metrics of a validation set under names such as `valid/ppl/<domain>`.

    Args:
        prefix: `valid` or `tune`.
        nats: [sequences] summed cross-entropy.
        tokens: target tokens in each sequence.
        text_bytes: [sequences] bytes of text that the target tokens stand for.
        domain: [sequences] index into `domains`; every domain has a sequence.
        domains: their names.
    """
    per_token, per_byte = [], []
    found: dict[str, float] = {}
    for number, name in enumerate(domains):
        own = domain == number
        per_token.append(float(nats[own].sum() / (own.sum() * tokens)))
        per_byte.append(float(nats[own].sum() / math.log(2) / text_bytes[own].sum()))
        found[f"{prefix}/nats/{name}"] = per_token[-1]
        found[f"{prefix}/ppl/{name}"] = perplexity(per_token[-1])
        found[f"{prefix}/bits_per_byte/{name}"] = per_byte[-1]
    mean = sum(per_token) / len(domains)
    return {
        f"{prefix}/nats": mean,
        f"{prefix}/ppl": perplexity(mean),
        f"{prefix}/bits_per_byte": sum(per_byte) / len(domains),
        **found,
    }


def perplexity(nats: float) -> float:
    """exp(nats); infinite where that is beyond a float, as for a model that has diverged."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf

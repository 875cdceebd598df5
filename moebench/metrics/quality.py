"""Nats, perplexity and bits per byte, by domain and as the unweighted mean over domains.

They are made of cross-entropy alone, without balance terms.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

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
        prefix: `valid`, `tune` or `heldout`.
        nats: [sequences] summed cross-entropy.
        tokens: target tokens in each sequence.
        text_bytes: [sequences] bytes of text that the target tokens stand for.
        domain: [sequences] index into `domains`; every domain has a sequence.
        domains: their names.
    """
    per_token, per_byte = [], []
    by_domain: dict[str, float] = {}
    for number, name in enumerate(domains):
        in_domain = domain == number
        per_token.append(float(nats[in_domain].sum() / (in_domain.sum() * tokens)))
        per_byte.append(float(nats[in_domain].sum() / math.log(2) / text_bytes[in_domain].sum()))
        by_domain[f"{prefix}/nats/{name}"] = per_token[-1]
        by_domain[f"{prefix}/ppl/{name}"] = perplexity(per_token[-1])
        by_domain[f"{prefix}/bits_per_byte/{name}"] = per_byte[-1]
    mean = sum(per_token) / len(domains)
    return {
        f"{prefix}/nats": mean,
        f"{prefix}/ppl": perplexity(mean),
        f"{prefix}/bits_per_byte": sum(per_byte) / len(domains),
        **by_domain,
    }


class Documents(NamedTuple):
    """Sums over the target tokens of each document; each array is [documents]."""

    nats: np.ndarray
    tokens: np.ndarray
    text_bytes: np.ndarray
    domain: np.ndarray


def standard_errors(prefix: str, documents: Documents, domains: Sequence[str]) -> dict[str, float]:
    """Standard errors over documents of `nats` and `bits_per_byte`, as in `valid/nats_se`.

    Tokens of a document are similar, so the sample consists of documents. The value of a domain is
    a ratio of sums over documents, with the error of a ratio estimator. It estimates how far other
    documents of the same kind would move the value. Arms see the same documents, so differences of
    arms vary less. A domain with a single document has no error, and then the mean over domains has
    none either.
    """
    metrics: dict[str, float] = {}
    for name, size, scale in (
        ("nats", documents.tokens, 1.0),
        ("bits_per_byte", documents.text_bytes, 1 / math.log(2)),
    ):
        errors = [
            _ratio_error(documents.nats[in_domain] * scale, size[in_domain])
            for in_domain in (documents.domain == number for number in range(len(domains)))
        ]
        of_mean = math.sqrt(sum(error**2 for error in errors)) / len(errors)
        named = {f"/{domain}": error for domain, error in zip(domains, errors, strict=True)}
        for end, error in {"": of_mean, **named}.items():
            if math.isfinite(error):
                metrics[f"{prefix}/{name}_se{end}"] = error
    return metrics


def _ratio_error(value: np.ndarray, size: np.ndarray) -> float:
    """Standard error of sum(value) / sum(size) over independent pairs; nan for a single one."""
    number = len(value)
    if number < 2:
        return math.nan
    rest = value - size * (value.sum() / size.sum())
    return float(math.sqrt(number / (number - 1) * (rest**2).sum()) / size.sum())


def perplexity(nats: float) -> float:
    """exp(nats); infinite if that exceeds a float, as for a model that diverged."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf

"""Every metric, declared once: its meaning, its reference values and where it is shown.

Records, TensorBoard, `inspect`, the report and docs/metrics.md read the declarations. To add a
metric, compute it and declare it in the file of its question. The order of the declarations is
that of every view: within a question, within a table of the report, within a group of `inspect`.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moebench.catalogue.balanced import BALANCED
from moebench.catalogue.costs import COSTS
from moebench.catalogue.learning import LEARNING
from moebench.catalogue.metric import Claim, Column, Metric, RandomRouting, Taken
from moebench.catalogue.specialised import FORCES, SPECIALISED
from moebench.catalogue.training import TRAINING

__all__ = [
    "METRICS",
    "SETTLED",
    "Claim",
    "Column",
    "Metric",
    "find",
    "is_settled",
    "random_values",
    "taken",
]

SETTLED = 0.1  # share of the steps, at the end, over which a summary averages a step's metrics

METRICS: dict[str, Metric] = {
    metric.name: replace(metric, question=question)
    for question, metrics in (
        ("Is it learning?", LEARNING),
        ("Is it balanced?", BALANCED),
        ("Does it specialise?", SPECIALISED),
        ("What does it cost?", COSTS),
        ("What pulls at the routers?", FORCES),
        ("How does training go?", TRAINING),
    )
    for metric in metrics
}
"""Name -> declaration, in order. Read it when it is used, so that all views see one catalogue."""


def find(key: str) -> Metric | None:
    """The declaration of a key of a row or summary; None if nobody declared it."""
    if (metric := METRICS.get(key)) is not None:
        return metric if metric.whole else None
    parts = key.split("/")
    for length in (2, 1):  # what follows a name, such as a domain, may itself hold slashes
        metric = METRICS.get("/".join(parts[:length]))
        if metric is not None and metric.per and length < len(parts):
            return metric
    return None


def taken(key: str) -> Taken:
    """What a summary holds of a key; the mean of one that nobody declared."""
    metric = find(key)
    return metric.taken if metric is not None and metric.taken else "mean"


def is_settled(step: int, steps: int) -> bool:
    """Whether a summary averages over this step of a run."""
    return step > steps * (1 - SETTLED)


def random_values(
    manifest: Mapping[str, Any], num_experts: int | None = None, top_k: int | None = None
) -> dict[str, float]:
    """Metric -> its value under random routing, for the metrics where it is known.

    Args:
        manifest: of a run; `random_load` and `random_slowdown` hold its simulations.
        num_experts: of a layer; None: unknown, which leaves out the metrics that depend on it.
        top_k: experts of a token; None: likewise.
    """
    run = RandomRouting(
        manifest.get("random_load") or {}, manifest.get("random_slowdown"), num_experts, top_k
    )
    values = {
        name: metric.random.value(run)
        for name, metric in METRICS.items()
        if metric.random is not None
    }
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }

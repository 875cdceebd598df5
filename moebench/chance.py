"""What metrics are if every token chooses its experts at random: compare with it, not with 0."""

import math
from collections.abc import Mapping
from typing import Any

OF_LOADS = {  # metric -> window and name in a manifest's `random_load`
    "load/max_vio_micro": ("micro", "max_vio"),
    "load/max_vio_batch": ("batch", "max_vio"),
    "load/max_vio_global": ("global", "max_vio"),
    "load/cv": ("batch", "cv"),
    "load/entropy": ("batch", "entropy"),
    "load/gini": ("batch", "gini"),
    "load/dead_experts": ("batch", "dead_experts"),
    "load/dead_experts_global": ("global", "dead_experts"),
    "load/drop_rate": ("micro", "drop_rate"),
}
SLOWDOWNS = ("ep/slowdown", "ep/slowdown_greedy")  # no earlier load foretells a random one


def of_run(manifest: Mapping[str, Any]) -> dict[str, float]:
    """Metric -> its value under random routing, of those that take a simulation.

    Args:
        manifest: of a run, which has the simulations as `random_load` and `random_slowdown`; what
            it lacks is left out.
    """
    loads = manifest.get("random_load") or {}
    found = {key: loads.get(window, {}).get(name) for key, (window, name) in OF_LOADS.items()}
    found |= dict.fromkeys(SLOWDOWNS, manifest.get("random_slowdown"))
    return {
        key: value
        for key, value in found.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def of_shape(num_experts: int, top_k: int) -> dict[str, float]:
    """Metric -> its value under random routing of many tokens, of those with a formula."""
    share = top_k / num_experts
    return {
        "specialization/domain": 0.0,
        "specialization/domain_given_token": 0.0,
        "specialization/largest_share": share,
        "specialization/vocabulary": share,
        "specialization/coactivation": (top_k - 1) / max(1, num_experts - 1),
        "router/topk_mass": share,
        "router/changed": 1 - 1 / math.comb(num_experts, top_k),
        "router/saturation": share,
    }

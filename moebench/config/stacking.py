"""Which runs can be trained side by side in one process: those of equal shape.

A stack shares shapes, kernels and the number of sequences in a pass, and nothing else: each arm has
its own batches, objective, optimizer and record.
"""

import json
from collections.abc import Mapping
from typing import Any

from moebench.config.schema import flat

AUTO = "auto"
CUDA_GROUPS = 1023  # expert matrices that one grouped product on a GPU takes

# Keys that may differ within a stack. Those of the optimizer are among them since each arm has one.
STACKABLE = (
    *("seed", "scope", "balance_bsz", "micro_bsz", "loss.", "balance.", "optim."),
    *("router.perturb", "data.homogeneity", "data.sampling", "data.temperature", "data.weights"),
)


def shape_of(config: Mapping[str, Any]) -> str:
    """What runs of one stack have in common: every key that is not stackable, as JSON.

    Args:
        config: of a run, as nested tables.
    """
    fixed = {key: value for key, value in flat(config) if not key.startswith(STACKABLE)}
    return json.dumps(fixed, sort_keys=True)

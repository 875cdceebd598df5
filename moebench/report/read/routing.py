"""The routing that runs recorded, for pictures; none where it is damaged.

A report names that damage by itself (`Frame.damaged`), and goes on without the picture.
"""

from pathlib import Path

import numpy as np

from moebench.errors import RecordError
from moebench.records import Record


def last_counts(run: Path, domains: int) -> np.ndarray | None:
    """[layers, domains, experts] choices at a run's last evaluation.

    Args:
        domains: of the run, whose number the counts must have.
    """
    record = Record(run)
    try:
        steps = record.routing_steps()
        counts = record.routing(steps[-1]).get("counts") if steps else None
    except RecordError:
        return None
    return counts if counts is not None and counts.shape[1] == domains else None


def probes(run: Path) -> dict[int, np.ndarray]:
    """Step -> the experts of the probe's tokens; see `Record.probes`."""
    try:
        return Record(run).probes()
    except RecordError:
        return {}

"""Which domains share their experts, and which do not: Figure 4b of the paper, described.

Two domains share the sum over experts of the smaller of their shares of choices: 1 if they use
every expert alike, 0 if they have none in common.
"""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from moebench.report.infer.arms import Arm, Table
from moebench.report.paper.findings import findings
from moebench.report.paper.selectors import options_as_keys, pairs
from moebench.report.read.frame import Frame
from moebench.report.read.routing import last_counts


class Overlap(NamedTuple):
    """What an arm's domains share, mean over layers and seeds.

    Attributes:
        finding: name of its file.
        arm: its name.
        most, least: the two domains that share most and least.
        most_share, least_share: of their choices.
    """

    finding: str
    arm: str
    most: tuple[str, str]
    least: tuple[str, str]
    most_share: float
    least_share: float


def overlaps(table: Table, frame: Frame) -> list[Overlap]:
    """Of the arms of each described finding, at their end; none before a study has ended."""
    if table.step is not None or table.interim is not None:
        return []
    rows = {row["run"]: row for row in frame.rows() if row["table"] == table.index}
    domains = {run: row["domains"] for run, row in rows.items()}
    paths = {run: row["path"] for run, row in rows.items()}
    sciences = [options_as_keys(arm.science) for arm in table.arms]
    found = []
    for name, finding in findings().items():
        if finding["type"] != "described":
            continue
        columns = {
            column: None
            for pair in pairs(sciences, finding["against"], finding["arm"])
            for column in pair
        }
        measured = (_overlap(name, table.arms[column], domains, paths) for column in columns)
        found += [overlap for overlap in measured if overlap is not None]
    return found


def _overlap(
    finding: str, arm: Arm, domains: Mapping[str, list[str]], paths: Mapping[str, Path]
) -> Overlap | None:
    """None for fewer than three domains, and without the counts of any run."""
    names = domains[next(iter(arm.runs.values()))]
    matrices = [
        shared
        for run in arm.runs.values()
        if domains[run] == names and (shared := _shared(paths[run], len(names))) is not None
    ]
    if len(names) < 3 or not matrices:
        return None
    mean = np.mean(matrices, axis=0)
    ranked = sorted(combinations(range(len(names)), 2), key=lambda pair: mean[pair])
    (a, b), (c, d) = ranked[0], ranked[-1]
    return Overlap(
        finding,
        arm.name,
        (names[c], names[d]),
        (names[a], names[b]),
        float(mean[c, d]),
        float(mean[a, b]),
    )


def _shared(run: Path, domains: int) -> np.ndarray | None:
    """[domains, domains] what they share at the last evaluation; None if it is not recorded."""
    counts = last_counts(run, domains)
    if counts is None:
        return None
    share = counts / np.maximum(counts.sum(axis=2, keepdims=True), 1)  # [layers, domains, experts]
    return np.minimum(share[:, :, None], share[:, None]).sum(axis=3).mean(axis=0)

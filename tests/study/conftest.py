"""Overrides for a small run, and a plan of runs that nobody trains."""

from collections.abc import Callable
from pathlib import Path

import pytest

from moebench.study import Job, Plan


@pytest.fixture
def small(text_folder: Path) -> Callable[..., list[str]]:
    """Returns the overrides of a small run, followed by the given ones."""

    def made(*more: str) -> list[str]:
        return [
            *("model=smoke", "global_bsz=8", "seq_len=32", "data.valid_sequences=4"),
            *("data=folder", f"data.path={text_folder}", *more),
        ]

    return made


def a_plan(runs: int) -> Plan:
    config = {"train": {"steps": 6}}
    jobs = (Job(n, f"arm-s{n}-0", "arm", "0", n, (f"seed={n}",), config) for n in range(runs))
    return Plan("sweep", "", "", "arm", "valid/nats", tuple(jobs))

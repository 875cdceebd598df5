"""Examples for the tests of reports: hostile names, and a study with its report as one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from moebench.records import Record
from moebench.report import Report
from moebench.report.read.frame import Frame

HOSTILE = (
    "x[/foo]",
    "<script>alert(1)</script>",
    "=cmd|' /C calc'!A0",
    "L" * 300,
    "a\x1b[2J\nb|`*",
)


def scopes(
    runs: Path, run: Callable[..., Record], seeds: int = 3, effect: float = -0.015
) -> list[Record]:
    """Three arms: global lower than micro by the effect, shuffled like micro."""
    rng, made = np.random.default_rng(0), []
    for seed in range(seeds):
        block = 1.6 + 0.02 * rng.normal()
        for arm, shift, sequences in (
            ("micro", 0, 4),
            ("global", effect, 128),
            ("shuffled", 0, 128),
        ):
            nats = block + shift + 0.001 * rng.normal()
            local = 1.36 if arm == "micro" else 1.71
            metrics = {
                "load/max_vio_micro": local + 0.01 * rng.normal(),
                "load/max_vio_batch": 0.4 + 0.01 * rng.normal(),
                "load/max_vio_global": 0.4 + 0.1 * (-1) ** seed * (arm != "micro"),
                "load/entropy": 0.97,
                "load/dead_experts": 0.0,
                "specialization/domain": (0.24 if arm == "micro" else 0.31) + 0.005 * rng.normal(),
            }
            made.append(run(runs, arm, seed, nats, sequences=sequences, metrics=metrics))
    return made


def texts(report: Report) -> str:
    return " ".join(report.render("table").split())


def by_metric(frame: Frame) -> dict[Any, Any]:
    """Values of a frame of one run."""
    return dict(zip(frame.metrics["metric"], frame.metrics["value"], strict=True))

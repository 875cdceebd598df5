"""A study that ends by rule, of fake records, and what its report says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moebench.records import Record
from moebench.report import Report, make_report

Make = Callable[..., Record]
ORDER = ["01-global-below-micro", "02-shuffled-below-micro"]
MICRO = {"balance_bsz": 4}
GLOBAL, SHUFFLED = {"balance_bsz": 128}, {"balance_bsz": 128, "scope": "shuffled"}


@pytest.fixture
def study(runs: Path, run: Make, plan: Callable[..., Path]) -> Callable[..., Path]:
    """A study of at most 12 seeds, whose global is lower by some deviations of a difference."""

    def made(
        effect: float,
        seeds: int = 3,
        *,
        third: tuple[str, float, dict[str, Any]] | None = None,
        most: int = 12,
        twin: bool = False,
        **more: Any,
    ) -> Path:
        rng, records = np.random.default_rng(5), []
        arms: list[tuple[str, float, dict[str, Any]]] = [
            ("micro", 0.0, MICRO),
            ("global", effect, GLOBAL),
            third or ("shuffled", effect, SHUFFLED),
        ]
        if twin:
            arms.append(("micro perturb=1e-06", 0.0, MICRO | {"router.perturb": 1e-6}))
        for seed in range(most):
            block = 1.6 + 0.1 * rng.normal()
            for arm, shift, science in arms:
                nats = block + 0.01 * (shift + rng.normal() / np.sqrt(2))
                record = run(runs, arm, seed, float(nats), science=science, rows=[])
                records.append(record)
        rule = {"most_seeds": most, "order": ORDER, "baseline": "micro", **more}
        path = plan(runs, "scope", records, **{k: v for k, v in rule.items() if v is not None})
        for record in records:
            if record.manifest()["seed"] >= seeds:
                remove(record)
        return path

    return made


def remove(record: Record) -> None:
    for file in sorted(record.path.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    record.path.rmdir()


def report(runs: Path) -> tuple[Report, dict[str, Any]]:
    made = make_report([runs], study="scope", runs_dir=runs)
    return made, made.to_dict()


def findings(content: dict[str, Any]) -> list[tuple[str, str]]:
    return [(each["verdict"], each["reason"]) for each in content["findings"]]


def arm_of(record: Record) -> str:
    return record.manifest()["arm"]

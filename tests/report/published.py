"""Fake studies as the page of results has them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from docs.published import records
from docs.published.study import Study
from moebench.plans import read_plan
from moebench.report import make_report
from tests.report.conftest import make_plan, make_run

GLOBAL = {"balance_bsz": 128}
ARMS: dict[str, tuple[float, dict[str, Any]]] = {
    "micro": (0.0, {}),
    "global": (-0.02, GLOBAL),
    "none": (0.01, {"scope": "none"}),
    "micro perturb=1e-06": (0.0, {"router.perturb": 1e-6}),
}


def fake_study(runs: Path, seeds: int = 6, name: str = "scope") -> Study:
    """A study of a few arms, whose global is 0.02 nats a byte below micro."""
    made = [
        make_run(
            runs,
            arm,
            seed,
            1.6 + shift + 0.001 * ((7 * seed + 3 * place) % 5),
            science=science,
            metrics={"load/max_vio_micro": 1.0 + seed / 100, "ep/slowdown": 1.1 + place / 10},
            rows=[{"step": step, "valid/nats": 2.0 - step / 1000} for step in (0, 200, 400)],
            domains=["a", "b"],
        )
        for seed in range(seeds)
        for place, (arm, (shift, science)) in enumerate(ARMS.items())
    ]
    words = [f"study={name}", "data=folder", "data.path=/a/secret/place"]
    order = ["01-global-below-micro"]
    path = make_plan(runs, name, made, typed=words, baseline="micro", order=order)
    plan = read_plan(path)
    report = make_report([runs], study=path.parent.name, runs_dir=runs)
    return records.study_of(plan, report, "a processor")


def ruled_study(
    runs: Path,
    name: str,
    arms: Mapping[str, tuple[float, dict[str, Any]]],
    seeds: int,
    noise: float,
    **rule: Any,
) -> Study:
    """A study that is at a look of its rule.

    Args:
        arms: by how much their nats a byte differ, and their settings.
        noise: the deviation of a run's.
        rule: `order` of findings, `margin`, and at will `baseline`.
    """
    rng = np.random.default_rng(1)
    made = [
        make_run(
            runs,
            arm,
            seed,
            1.6 + shift + noise * float(rng.normal()),
            science=science,
            metrics={"load/max_vio_micro": 1.0 + place + seed / 1000},
            rows=[],
            domains=["a", "b"],
        )
        for seed in range(seeds)
        for place, (arm, (shift, science)) in enumerate(arms.items())
    ]
    more = {"typed": [f"study={name}"], "baseline": "micro", "most_seeds": 16}
    path = make_plan(runs, name, made, **more | rule)
    report = make_report([runs], study=path.parent.name, runs_dir=runs)
    return records.study_of(read_plan(path), report, "a processor")

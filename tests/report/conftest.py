"""Fake records, made the way a run makes them."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moebench.records import Record
from tests.report.ruled import study as study

SCIENCE = {
    "balance_bsz": 4,
    "data": "0123abcd",
    "data.valid_sequences": 32,
    "global_bsz": 128,
    "loss.balance": 0.1,
    "micro_bsz": 4,
    "model.num_experts": 16,
    "model.top_k": 2,
    "scope": "group",
    "seq_len": 128,
    "train.precision": "fp32",
    "train.steps": 400,
}

DATA = {"source": "installed", "tokenizer": "bytes", "trigram_bits": 100.0}
ABOUT = {
    "device": "cpu",
    "device_name": "a CPU",
    "moebench": "0.1.0",
    "precision": "fp32",
    "random_max_vio": {"micro": 0.22, "batch": 0.04, "global": 0.02},
    "torch": "2.11.0",
}


def make_run(
    root: Path,
    arm: str,
    seed: int = 0,
    nats: float | None = 1.6,
    *,
    state: str = "done",
    sequences: int | None = 4,
    science: dict[str, Any] | None = None,
    metrics: dict[str, float | None] | None = None,
    reason: str = "",
    rows: Sequence[dict[str, Any]] = ({"step": 10, "train/loss": 5.0},),
    counts: np.ndarray | None = None,
    **manifest: Any,
) -> Record:
    """A record in which `arm` and `science` make the identity; `nats` sets what depends on it."""
    keys = SCIENCE | (science or {})
    arm_hash = hashlib.sha256(json.dumps([arm, keys]).encode()).hexdigest()[:10]
    record = Record(root / f"{arm_hash}-s{seed}")
    about = {
        "arm": arm,
        "arm_hash": arm_hash,
        "data": DATA | {"content_hash": keys["data"]},
        "group": {"sequences": sequences, "tokens": sequences and 128 * sequences},
        "hash": f"{arm_hash}{seed}",
        "run": record.name,
        "science": keys | {"seed": seed},
        "seed": seed,
    }
    record.begin(f"seed: {seed}\n", ABOUT | about | manifest)
    for row in rows:
        record.append(row)
    if counts is not None:
        record.save_routing(400, {"counts": counts})
    record.set_status("running" if state == "done" else state, step=120, steps=400, reason=reason)
    if state == "done":
        quality = {} if nats is None else {"valid/nats": nats, "valid/ppl": math.exp(nats)}
        if nats is not None:
            quality["valid/bits_per_byte"] = nats / math.log(2)
        record.seal(
            {
                **quality,
                **(metrics or {}),
                "arm": arm,
                "seconds": 60.0,
                "seed": seed,
                "status": "done",
                "steps": 400,
                "tokens": 400 * 128 * 128,
            }
        )
        record.set_status("done", step=400, steps=400)
    return record


def make_plan(runs: Path, name: str, records: list[Record], **more: Any) -> Path:
    """A study's plan of these runs."""
    manifests = [record.manifest() for record in records]
    planned = [
        {
            "id": i,
            "overrides": [],
            "config": {"train": {"steps": 400}},
            **{key: manifest[key] for key in ("run", "arm", "arm_hash", "seed")},
        }
        for i, manifest in enumerate(manifests)
    ]
    path = runs / "studies" / f"{name}-0a1b2c" / "plan.json"
    path.parent.mkdir(parents=True)
    about = {"schema_version": 1, "name": name, "question": "What?", "size": "cpu"}
    compared = {"baseline": "", "primary": "valid/nats"}
    path.write_text(json.dumps({**about, **compared, "runs": planned, **more}))
    return path


@pytest.fixture(autouse=True)
def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake records need not survive a power cut."""
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def run() -> Callable[..., Record]:
    return make_run


@pytest.fixture
def plan() -> Callable[..., Path]:
    return make_plan


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """An empty runs directory."""
    path = tmp_path / "runs"
    path.mkdir()
    return path

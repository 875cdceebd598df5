"""A small finished record with each kind of file, for tests."""

from pathlib import Path

import numpy as np

from moebench.records import Record

CONFIG = "train:\n  steps: 4\nseed: 0\n"


def sealed(path: Path) -> Record:
    """A small finished record with each kind of file."""
    record = Record(path)
    record.begin(CONFIG, {"arm": "micro", "seed": 0})
    for step in range(5):
        record.append(
            {"step": step, "train/loss": 1 / (step + 3), "load/utilization/0": [0.5, 1.5]}
        )
    record.save_routing(0, {"counts": np.arange(6).reshape(1, 2, 3)})
    checkpoint = path / "checkpoints" / "step-4"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    (path / "tensorboard").mkdir()
    (path / "tensorboard" / "events").write_bytes(b"a view")
    record.seal({"status": "done", "valid/nats": 1 / 3, "empty": float("nan")})
    record.set_status("done", step=4, steps=4)
    return record


def files(record: Record) -> list[Path]:
    return sorted(path for path in record.path.rglob("*") if path.is_file())

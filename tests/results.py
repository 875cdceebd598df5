"""All of a record that two equal runs must have in common, bit for bit; and runs that stop."""

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from moebench.disk import sha256
from moebench.errors import Stopped
from moebench.protection import PROTECTION
from moebench.records import Record

if TYPE_CHECKING:
    from moebench.config.schema import ExperimentConfig
    from moebench.data.corpus import Corpus
    from moebench.train.loop import Event

OF_THE_CLOCK = ("speed/", "balance/allreduce_seconds", "time", "seconds", "end")
VARIES = (*OF_THE_CLOCK, "memory/", "sha256", "files", "bytes")
EVERYTHING = {"scalars": 0, "images": 0, "tensors": 0}


def _equal_in_all(values: dict[str, Any]) -> dict[str, Any]:
    """Without what depends on the clock or the process; hexadecimal, so that nan equals itself."""
    return {
        key: value.hex() if isinstance(value, float) else value
        for key, value in values.items()
        if not key.startswith(VARIES)
    }


def measured(record: Record) -> list[dict[str, Any]]:
    return [_equal_in_all(row) for row in record.rows()]


def scalars(record: Record) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run: tag -> (step, value)."""
    view = EventAccumulator(str(record.path / "tensorboard"), size_guidance=EVERYTHING).Reload()
    tags = view.Tags()["scalars"]
    found = {tag: [(point.step, point.value) for point in view.Scalars(tag)] for tag in tags}
    return {tag: values for tag, values in found.items() if not tag.startswith(VARIES)}


def results(record: Record) -> dict[str, Any]:
    """Of a finished run: checkpoints byte for byte, rows, routing, summary and TensorBoard."""
    assert record.damage() == []
    states = [*record.path.glob("checkpoints/*/*"), *record.path.glob("routing/*")]
    files = [path for path in states if path.name != PROTECTION]  # it hashes rows with times
    config = json.dumps(record.config(), default=str)
    assert files
    return {
        "files": {path.relative_to(record.path).as_posix(): sha256(path) for path in files},
        "rows": measured(record),
        "summary": _equal_in_all(record.summary()),
        "scalars": scalars(record),
        "config": config,
    }


def stopped(config: "ExperimentConfig", corpus: "Corpus", folder: Path, step: int) -> Stopped:
    """Train a run until SIGTERM stops it after a step; returns what it raises."""
    from moebench.experiment import run_experiment  # imports torch

    def stop(event: "Event") -> None:
        if event.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped) as raised:
        run_experiment(config, corpus, folder, on_event=stop)
    return raised.value

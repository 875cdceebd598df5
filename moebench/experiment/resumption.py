"""Where an unfinished run continues: at its last whole checkpoint whose record is untouched."""

import sys
from collections.abc import Sequence

import torch

from moebench.disk import remove_folder
from moebench.errors import RecordError
from moebench.protection import (
    CHECKPOINTS,
    checkpoint_path,
    is_protected,
    record_damage,
    steps_kept,
)
from moebench.records import Record, printable
from moebench.train.build import State
from moebench.train.checkpoint import KEPT, restore
from moebench.train.step import Objective


def common_step(records: Sequence[Record]) -> int | None:
    """The last step of which all of some runs have a checkpoint; None if there is none.

    Runs of a stack that was killed continue there together: with fewer of them, products have other
    shapes, and may round otherwise.
    """
    kept = [{*steps_kept(record.path / CHECKPOINTS)} for record in records]
    return max(set.intersection(*kept), default=None) if kept else None


def continued_from(
    record: Record,
    state: State,
    objective: Objective,
    device: torch.device,
    preferred: int | None = None,
) -> bool:
    """Set a run's state to that of its last whole checkpoint; False if it has no checkpoint.

    A checkpoint counts if it loads and if the record up to it is as it was then. Those after it are
    removed, and stderr says so if they are damaged: training makes their steps again.

    Args:
        preferred: step of the checkpoint to take if it counts, although there are later ones.

    Raises:
        RecordError: if no checkpoint counts, with what is wrong with the last.
    """
    errors: list[RecordError] = []
    kept = steps_kept(record.path / CHECKPOINTS)
    for step in sorted(kept, key=lambda step: (step == preferred, step), reverse=True):
        path = checkpoint_path(record.path, step)
        try:
            _check_record(record, step)
            restore(state, path, objective, device)
        except RecordError as error:
            errors.append(error)
            continue
        for error in errors:
            say(f"{error}; continuing from the checkpoint of step {step} instead")
        until = kept[: kept.index(step) + 1]
        # later ones, and one that a kill left before a save had removed it
        for other in (*kept[len(until) :], *until[:-KEPT]):
            remove_folder(checkpoint_path(record.path, other))
        if not is_protected(record, step):
            say(
                f"{path}: is of an earlier version and does not protect the record; its rows and "
                "routing are taken as they are"
            )
        return True
    if errors:
        raise errors[0]
    return False


def _check_record(record: Record, step: int) -> None:
    damage = record_damage(record, step)
    if damage:
        raise RecordError(
            f"{record.path}: {damage[0]} since the checkpoint of step {step}; restore the file, or "
            "--force starts afresh"
        )


def say(line: str) -> None:
    """Print a warning on stderr, as a line."""
    print(printable(f"warning: {line}"), file=sys.stderr)

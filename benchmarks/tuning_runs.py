"""Runs on tuning seeds as rows: what `noise.py`, `trials.py` and `headroom_size.py` share."""

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from moebench.errors import MoebenchError, RecordError
from moebench.records import Record
from moebench.registration import TUNING
from moebench.report.read.frame import Frame, load

Found = TypeVar("Found")

ROUTERS, DEFAULTS = ("router.", "optim.router"), "defaults of the router"


def print_table(
    description: str,
    found_in: Callable[[list[dict[str, Any]]], list[Found]],
    table: Callable[[list[Found]], str],
    lacks: str,
) -> None:
    """A command that reads directories of runs and prints a table of what their rows hold.

    Args:
        description: of the command.
        found_in: what the rows hold, which has a line each in the table.
        lacks: the error of rows that hold nothing.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("runs", nargs="*", default=["runs"], help="directories of runs")
    options = parser.parse_args()
    try:
        if not (found := found_in(rows_in(options.runs))):
            raise RecordError(lacks)
        print(table(found))
    except MoebenchError as error:
        parser.exit(2, f"error: {error}\n")


def rows_in(directories: Sequence[str | Path]) -> list[dict[str, Any]]:
    """The finished runs of some directories; stderr says which records are left out, and why."""
    frame = load([Path(word) for word in directories])
    for run, reason in frame.problems:
        print(f"left out: {run}: {reason}", file=sys.stderr)
    return with_metrics(frame)


def with_metrics(frame: Frame) -> list[dict[str, Any]]:
    """The finished runs of a frame, each with its metrics by name, seconds among them."""
    by_run: dict[str, dict[str, float]] = {}
    columns = (frame.metrics[key].tolist() for key in ("run", "metric", "value"))
    for run, metric, value in zip(*columns, strict=True):
        by_run.setdefault(run, {})[metric] = value
    rows = []
    for row in frame.rows():
        if row["run"] in by_run:
            seconds = Record(row["path"]).summary().get("seconds")
            rows.append({**row, "metrics": {**by_run[row["run"]], "seconds": seconds}})
    return rows


def refuse_reported(row: Mapping[str, Any], task: str) -> None:
    """Raises RecordError for a run on a seed that studies report, before a task in words."""
    if row["seed"] < TUNING:
        name, seed = row.get("run") or row["arm"], row["seed"]
        raise RecordError(
            f"{name}: seed {seed} is one that is reported; {task} on seeds from {TUNING} on"
        )


def usual(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The values, by key, that more than three in four settings have, and not all of them.

    A key that a setting lacks, which is then at its default, has no usual value.
    """
    found = {}
    for key in sorted(set.intersection(*({*of} for of in settings))):
        values = [of[key] for of in settings]
        most = max(values, key=values.count)
        if 0.75 * len(settings) < values.count(most) < len(settings):
            found[key] = most
    return found


def named(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each setting by the keys in which they differ, but for usual values.

    A single one is named by the keys of its router.
    """
    first = settings[0]
    if len(settings) == 1:
        return [_words((k, v) for k, v in first.items() if k.startswith(ROUTERS)) or DEFAULTS]
    common = {key for key in first if all(of.get(key) == first[key] for of in settings)}
    most = usual(settings)
    return [
        _words(
            (k, v) for k, v in of.items() if k not in common and not (k in most and v == most[k])
        )
        or "as the others"
        for of in settings
    ]


def _words(pairs: Iterable[tuple[str, Any]]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(pairs))

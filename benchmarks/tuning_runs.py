"""Runs on tuning seeds as rows: what `noise.py`, `trials.py` and `headroom_size.py` share."""

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from moebench.config.knob import NOT_HASHED, knobs
from moebench.config.schema import ExperimentConfig
from moebench.errors import MoebenchError, RecordError
from moebench.records import Record
from moebench.registration import TUNING
from moebench.report.read.frame import Frame, load

Found = TypeVar("Found")

ROUTERS, DEFAULTS = ("router.", "optim.router"), "defaults of the router"
SAME = "as the others"  # the name of a setting with usual values alone
VALUES = {key: value for key, _, value in knobs(ExperimentConfig())}  # the defaults
UNTOLD = ("data.source", "data.path", "data.streaming", "data.max_epochs")  # say not which text
TEXT = {  # keys that say which text it is; a run's identity has them as the hash of the text
    key
    for key, field, _ in knobs(ExperimentConfig())
    if key.startswith("data.") and field.metadata["neutral"] is NOT_HASHED and key not in UNTOLD
}
TWICE = "and ended with other results"  # of a run that is there twice, in words of the frame
REMEDY = (
    "a run that is there twice counts once, as it ended last; threads, stacks and versions round "
    "otherwise; remove the copy that should not count"
)


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
    tell_problems(frame, lambda line: print(line, file=sys.stderr))
    return with_metrics(frame)


def tell_problems(frame: Frame, tell: Callable[[str], None]) -> None:
    """A line on each record that is left out, and what to do about runs that are there twice."""
    for run, reason in frame.problems:
        tell(f"left out: {run}: {reason}")
    if any(reason.endswith(TWICE) for _, reason in frame.problems):
        tell(REMEDY)


def with_metrics(frame: Frame) -> list[dict[str, Any]]:
    """The finished runs of a frame, each with its metrics by name, seconds among them.

    Runs of a stack each record the seconds of the whole stack; here they have their share. Keys
    that tell one text from another are added to the science, which has its hash alone.
    """
    by_run: dict[str, dict[str, float]] = {}
    columns = (frame.metrics[key].tolist() for key in ("run", "metric", "value"))
    for run, metric, value in zip(*columns, strict=True):
        by_run.setdefault(run, {})[metric] = value
    rows, texts = [], {}
    for row in frame.rows():
        if row["run"] in by_run:
            record, text = Record(row["path"]), row["science"].get("data")
            if text not in texts:
                texts[text] = _of_text(record)
            metrics = {**by_run[row["run"]], "seconds": _seconds(record)}
            rows.append({**row, "science": texts[text] | row["science"], "metrics": metrics})
    return rows


def _seconds(record: Record) -> float | None:
    """A run's share of the seconds of its stack, as its first session stacked it."""
    seconds = record.summary().get("seconds")
    return seconds and seconds / (record.manifest().get("stacked") or 1)


def _of_text(record: Record) -> dict[str, Any]:
    """The keys that say which text a run is trained on, but for defaults."""
    return {
        key: value
        for key, value in record.config().items()
        if key in TEXT and value != VALUES.get(key)
    }


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
    """Each setting by the keys in which they differ, but for usual values and the hash of the text.

    A single one is named by the keys of its router.
    """
    settings = [{key: value for key, value in of.items() if key != "data"} for of in settings]
    first = settings[0]
    if len(settings) == 1:
        return [_words((k, v) for k, v in first.items() if k.startswith(ROUTERS)) or DEFAULTS]
    common = {key for key in first if all(of.get(key) == first[key] for of in settings)}
    most = usual(settings)
    return [
        _words(
            (k, v) for k, v in of.items() if k not in common and not (k in most and v == most[k])
        )
        or SAME
        for of in settings
    ]


def with_routers(settings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Settings with the defaults of those keys of the router that only others set."""
    keys = {key for of in settings for key in of if key.startswith(ROUTERS) and key in VALUES}
    return [{**{key: VALUES[key] for key in keys}, **of} for of in settings]


def _words(pairs: Iterable[tuple[str, Any]]) -> str:
    return ", ".join(f"{key}={typed(value)}" for key, value in sorted(pairs))


def typed(value: Any) -> str:
    """A value as a command line has it."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(typed, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)

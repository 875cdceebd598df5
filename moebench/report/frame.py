"""Records become a tidy frame: one row a run and metric, and what could not be read, by name.

What the report reads of a finished run (`summary.json`, `manifest.json`) is checked against the
record's seal; the other files are `moebench verify`'s business. Runs are compared within a *table*:
runs equal in data, sizes, steps, precision and model. Nothing is averaged across tables.
"""

import hashlib
import json
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from moebench.errors import RecordError
from moebench.records import Record, find_records, sha256

COMPARABLE = (
    "data",
    "seq_len",
    "global_bsz",
    "train.steps",
    "train.precision",
    "data.valid_sequences",
)  # and every model.* key
MADE_WITH = ("moebench", "torch", "device_name", "precision")
SCOPES = ("micro", "batch", "global")  # over which tokens a MaxVio is taken
ABSENT = "absent"  # stands for the value of a key that an arm leaves at its neutral value
SILENT_AFTER = 3600.0  # seconds without a heartbeat after which a running run is called silent
_FILES = ("manifest.json", "status.json", "summary.json", "metrics.jsonl")


class Problem(NamedTuple):
    """A record, or a part of one, that the report leaves out, and why."""

    run: str
    reason: str


@dataclass(frozen=True)
class Frame:
    """What the records under some directories hold.

    Attributes:
        runs: one row a run: `run` (directory name), `arm` (a label, unique within its table),
            `arm_hash`, `seed`, `state`, `reason`, `step`, `steps`, `table` (an index of `tables`),
            `tokens` (seen by a finished run), `sequences` and `group_tokens` (size of the balance
            group), `random_micro`, `random_batch`, `random_global` (MaxVio of random routing) and
            `made_with` (versions and device). Missing numbers are NaN.
        metrics: one row a finished run and metric: `run`, `arm`, `arm_hash`, `seed`, `table`,
            `metric`, `value`.
        tables: of each table, the keys in which its runs are equal, with their values.
        problems: what was left out.
    """

    runs: pd.DataFrame
    metrics: pd.DataFrame
    tables: tuple[dict[str, Any], ...]
    problems: tuple[Problem, ...]

    def rows(self) -> list[dict[str, Any]]:
        """The runs, a dictionary each."""
        return [{str(k): v for k, v in row.items()} for row in self.runs.to_dict("records")]


def load(roots: Sequence[Path], only: Collection[str] | None = None) -> Frame:
    """Read the records under some directories, or the records that these directories are.

    Args:
        roots: directories.
        only: names of the run directories to read; None reads all.

    Raises:
        RecordError: if a directory holds no record at all.
    """
    problems, rows = [], []
    for root in roots:
        records, torn = find_records(root), _torn(root)
        if not records and not torn:
            raise RecordError(f"{root}: {_nothing(root)}")
        problems += [each for each in torn if only is None or each.run in only]
        for record in records:
            if only is not None and record.name not in only:
                continue
            try:
                rows.append(_row(record))
            except RecordError as error:
                reason = str(error).replace(f"{record.path}/", "").replace(f"{record.path}: ", "")
                problems.append(Problem(printable(record.name), printable(reason)))
    rows, twins = _distinct(rows)
    problems += twins
    for row in rows:
        lost = sorted(name for name, value in row["metrics"].items() if value is None)
        if lost:
            problems.append(Problem(row["run"], f"no finite value of {', '.join(lost)}"))
    tables = _number_tables(rows)
    _tell_apart(rows)
    kept = ("run", "arm", "arm_hash", "seed", "table")
    metrics = [
        {**{key: row[key] for key in kept}, "metric": name, "value": value}
        for row in rows
        for name, value in row["metrics"].items()
        if value is not None
    ]
    columns = [*kept, "metric", "value"]
    return Frame(
        runs=pd.DataFrame(rows, columns=_COLUMNS).astype(dict.fromkeys(_NUMBERS, float)),
        metrics=pd.DataFrame(metrics, columns=columns),
        tables=tables,
        problems=tuple(problems),
    )


_NUMBERS = (
    *("step", "steps", "tokens", "sequences", "group_tokens"),
    *(f"random_{scope}" for scope in SCOPES),
)
_COLUMNS = [
    *("run", "arm", "arm_hash", "seed", "state", "reason", "table", *_NUMBERS, "made_with"),
]


def _row(record: Record) -> dict[str, Any]:
    """One run, checked; RecordError if anything that the report needs is missing or changed."""
    manifest = record.manifest()
    for key, kind in (("arm", str), ("arm_hash", str), ("science", dict)):
        if not isinstance(manifest.get(key), kind) or not manifest[key]:
            raise RecordError(f"manifest.json: holds no usable {key!r}")
    if type(manifest.get("seed")) is not int:
        raise RecordError("manifest.json: holds no usable 'seed'")
    group, random = _table(manifest, "group"), _table(manifest, "random_max_vio")
    row = {
        "run": printable(record.name),
        "arm": printable(manifest["arm"]),
        "arm_hash": manifest["arm_hash"],
        "seed": manifest["seed"],
        "science": manifest["science"],
        "sequences": number(group.get("sequences")),
        "group_tokens": number(group.get("tokens")),
        "made_with": tuple(printable(str(manifest.get(key, "?"))) for key in MADE_WITH),
        "metrics": {},
        **{f"random_{scope}": number(random.get(scope)) for scope in SCOPES},
    }
    if record.is_done():
        summary = record.summary()
        _check_seal(record, summary)
        values = {k: v for k, v in summary.items() if "/" in k and _is_scalar(v)}
        return row | {
            "state": "done",
            "reason": "",
            "step": number(summary.get("steps")),
            "steps": number(summary.get("steps")),
            "tokens": number(summary.get("tokens")),
            "metrics": {printable(name): number(value) for name, value in values.items()},
        }
    status = record.status()
    return row | {
        "state": printable(str(status.get("state", "?"))),
        "reason": printable(str(status.get("reason") or _silence(status))),
        "step": number(status.get("step")),
        "steps": number(status.get("steps")),
        "tokens": None,
    }


def _check_seal(record: Record, summary: Mapping[str, Any]) -> None:
    """RecordError if `summary.json` or `manifest.json` is not as the run left it."""
    content = {key: value for key, value in summary.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    sealed = summary.get("files")
    if summary.get("sha256") != digest or not isinstance(sealed, dict):
        raise RecordError("summary.json: was changed after the run; see moebench verify")
    if sealed.get("manifest.json") != sha256(record.path / "manifest.json"):
        raise RecordError("manifest.json: was changed after the run; see moebench verify")


def _silence(status: Mapping[str, Any]) -> str:
    beat = number(status.get("heartbeat"))
    silent = time.time() - beat if beat is not None else 0.0
    if status.get("state") == "running" and silent > SILENT_AFTER:
        return f"no sign of life for {silent / 3600:.0f} h"
    return ""


def _torn(root: Path) -> list[Problem]:
    """Directories with files of a record but not the one by which it is found."""
    if Record(root).exists() or not root.is_dir():
        return []
    return [
        Problem(printable(path.name), "config.yaml: is missing")
        for path in sorted(root.iterdir())
        if not (path / "config.yaml").is_file() and any((path / name).is_file() for name in _FILES)
    ]


def _nothing(root: Path) -> str:
    if not root.is_dir():
        return "is no directory; name one with runs, or make some with moebench sweep"
    return "holds no runs; make some with moebench sweep"


def _distinct(rows: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Each run once, a finished record before another: copies are no further evidence."""
    kept: dict[tuple[str, int], dict[str, Any]] = {}
    twins = []
    for row in rows:
        key = row["arm_hash"], row["seed"]
        first = kept.setdefault(key, row)
        if first is row:
            continue
        if row["state"] == "done" != first["state"]:
            kept[key], first, row = row, row, first
        twins.append(Problem(row["run"], f"is the same run as {first['run']}, which is taken"))
    return list(kept.values()), twins


def _number_tables(rows: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Set `table` in each row; the table with the most finished runs comes first."""
    found: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
    for row in rows:
        science = row["science"]
        keys = {key: science.get(key) for key in COMPARABLE}
        keys |= {key: value for key, value in science.items() if key.startswith("model.")}
        name = json.dumps(keys, sort_keys=True)
        found.setdefault(name, (keys, []))[1].append(row)
    ordered = sorted(found.values(), key=lambda each: -sum(r["state"] == "done" for r in each[1]))
    for number_, (_, members) in enumerate(ordered):
        for row in members:
            row["table"] = number_
    return tuple(keys for keys, _ in ordered)


def _tell_apart(rows: Sequence[dict[str, Any]]) -> None:
    """Append to labels that two arms of a table share the science keys in which they differ."""
    sharing: dict[tuple[int, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        arms = sharing.setdefault((row["table"], row["arm"]), {})
        arms[row["arm_hash"]] = {k: v for k, v in row["science"].items() if k != "seed"}
    labels = {key: _labels(key[1], arms) for key, arms in sharing.items()}
    for row in rows:
        row["arm"] = labels[row["table"], row["arm"]][row["arm_hash"]]


def _labels(shared: str, arms: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """A label for each arm hash; the hash itself where all keys are equal."""
    if len(arms) == 1:
        return dict.fromkeys(arms, shared)
    keys = sorted(set().union(*arms.values()))
    differing = [
        key for key in keys if len({json.dumps(arm.get(key, ABSENT)) for arm in arms.values()}) > 1
    ]
    labels = {
        name: " ".join([shared, *(f"{key}={_plain(arm[key])}" for key in differing if key in arm)])
        for name, arm in arms.items()
    }
    unique = len(set(labels.values())) == len(labels)
    return {
        name: printable(label if unique else f"{label} ({name})") for name, label in labels.items()
    }


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(manifest: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = manifest.get(key)
    return found if isinstance(found, dict) else {}


def _is_scalar(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def number(value: Any) -> float | None:
    """A finite number as a float, anything else as None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < sys.float_info.max else None


def printable(text: str) -> str:
    """Text without control characters, which could steer a terminal or break a row."""
    return "".join(each if each.isprintable() else "�" for each in text)

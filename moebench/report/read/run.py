"""One run as its record describes it: a finished one's results, another's state and step.

The files that are read here, `summary.json` and `manifest.json`, are checked against the seal of a
finished run or the last checkpoint of another; `moebench verify` checks the others.
"""

import sys
import time
from collections.abc import Mapping
from typing import Any

from moebench.contents import WORD, anything, fields
from moebench.errors import RecordError
from moebench.lock import ENDED, lives
from moebench.protection import check_files
from moebench.records import Record, printable

MADE_WITH = ("moebench", "torch", "python", "device_name", "threads", "precision")
SIZES = ("global_bsz", "seq_len", "train.steps")
NEEDED = fields(
    {
        **dict.fromkeys(("arm", "arm_hash"), WORD),
        "seed": anything,
        "science": fields(dict.fromkeys(SIZES, anything)),
    }
)
SCOPES = ("micro", "batch", "global")  # the tokens over which a MaxVio is taken
SILENT_AFTER = 90.0  # seconds without a heartbeat after which a run without a lock is called silent


def read_run(record: Record) -> dict[str, Any]:
    """One run as a row of the frame, in JSON values; metrics that are not finite are None.

    Raises:
        RecordError: if anything that the report needs is missing or was changed.
    """
    check_files(record, "config.yaml", "manifest.json")
    manifest = record.manifest()
    if wrong := NEEDED(manifest, ""):
        raise RecordError(f"manifest.json: {wrong}")
    group, random = _table(manifest, "group"), _table(manifest, "random_max_vio")
    row = {
        "run": printable(record.name),
        "arm": printable(manifest["arm"]),
        "arm_hash": manifest["arm_hash"],
        "seed": manifest["seed"],
        "science": _printable(manifest["science"]),
        "sequences": number(group.get("sequences")),
        "group_tokens": number(group.get("tokens")),
        "trigram_bits": number(_table(manifest, "data").get("trigram_bits")),
        "first_sequences": printable(str(manifest.get("first_sequences", ""))),
        "device": printable(str(manifest.get("device", "?")).partition(":")[0]),
        "domains": [printable(str(name)) for name in manifest.get("domains") or ()],
        "made_with": {
            **{key: printable(str(manifest[key])) for key in MADE_WITH if key in manifest},
            "commit": _commit(manifest),
        },
        "end": "",
        "metrics": {},
        **{f"random_{scope}": number(random.get(scope)) for scope in SCOPES},
    }
    if record.is_done():
        summary = record.summary()
        values = {k: v for k, v in summary.items() if "/" in k and _is_scalar(v)}
        return row | {
            "state": "done",
            "reason": "",
            "step": number(summary.get("steps")),
            "steps": number(summary.get("steps")),
            "end": printable(str(summary.get("end", ""))),
            "tokens": number(summary.get("tokens")),
            "metrics": {printable(name): number(value) for name, value in values.items()},
        }
    status = unfinished_status(record)
    return row | {
        "state": printable(str(status.get("state", "?"))),
        "reason": printable(str(status.get("reason") or "")),
        "step": number(status.get("step")),
        "steps": number(status.get("steps")),
        "tokens": None,
    }


def _printable(value: Any) -> Any:
    """A value of the science with printable texts only: it reaches tables and pages."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(key): _printable(item) for key, item in value.items()}
    return list(map(_printable, value)) if isinstance(value, list) else value


def _commit(manifest: Mapping[str, Any]) -> str:
    git = _table(manifest, "git")
    changed = " with changes" if git.get("dirty") else ""
    return printable(f"{str(git.get('commit') or 'unknown')[:10]}{changed}")


def unfinished_status(record: Record) -> dict[str, Any]:
    """The status of a run that is not done: it is running if a process holds its lock.

    A run that was killed leaves its lock, whose owner is looked up. A copied record has no lock;
    then the age of its heartbeat counts.

    Raises:
        RecordError: if the status cannot be read.
    """
    alive = lives(record)  # before the status, which is final if nobody is alive
    status = record.status()
    if alive and status.get("state") != "running":  # it continues, and wrote nothing yet
        return {**status, "state": "running", "reason": ""}
    if status.get("state") != "running" or alive:
        return status
    beat = number(status.get("heartbeat"))
    silent = time.time() - beat if beat is not None else 0.0
    if alive is None and silent <= SILENT_AFTER:
        return status
    reason = ENDED if alive is False else f"no sign of life for {_duration(silent)}"
    return {**status, "state": "stopped", "reason": reason}


def _duration(seconds: float) -> str:
    """A time in its largest whole unit."""
    for unit, size in (("days", 86400), ("h", 3600)):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds // 60:.0f} min"


def _table(manifest: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = manifest.get(key)
    return value if isinstance(value, dict) else {}


def _is_scalar(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def number(value: Any) -> float | None:
    """A finite number as a float, anything else as None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < sys.float_info.max else None

"""What each file of a record holds, and the readers that check it.

Raises RecordError naming the file, the first thing that is wrong with it and its place.
"""

import re
from pathlib import Path
from typing import Any

from moebench.contents import (
    DIGEST,
    FLAG,
    METRIC,
    NAME,
    NUMBER,
    TEXT,
    Check,
    anything,
    each,
    fields,
    maybe,
    metrics,
    one_of,
    table,
    whole,
)
from moebench.disk import parse_json, read_json, read_lines, reason
from moebench.errors import RecordError
from moebench.seals import SCHEMA_VERSION

STATES = ("waiting", "running", "done", "failed", "stopped")
MAX_METRICS_BYTES = 2**30
SEED = whole(0, 2**32 - 1)
STEP = re.compile(r"step-(0|[1-9][0-9]{0,14})")  # of a routing file or a checkpoint
ROUTING = {
    "counts": "int layers domains experts",
    "coactivation": "int layers experts experts",
    "probe_index": "int layers sequences tokens top_k",
    "probability": "int layers bins",
    "active": "bool layers experts",
}


def both(one: Check, other: Check) -> Check:
    return lambda value, place: one(value, place) or other(value, place)


def plain(value: Any, place: str) -> str:
    """Texts, numbers, true, false and null, in lists and tables."""
    if isinstance(value, list):
        return each(plain)(value, place)
    if isinstance(value, dict):
        return table(plain)(value, place)
    if value is None or type(value) is bool:
        return ""
    return TEXT(value, place) if isinstance(value, str) else NUMBER(value, place)


def _path(value: object, place: str) -> str:
    """A file of a record by its path there: no way out, nothing hidden."""
    if isinstance(value, str) and all(not NAME(part, "") for part in value.split("/")):
        return ""
    return f"{place} is not the name of a file of a record"


_NUMBERS = table(METRIC)
_TEXTS = dict.fromkeys(
    (
        *("run", "hash", "arm", "arm_hash", "first_sequences", "map", "moebench", "python"),
        *("torch", "platform", "device", "device_name", "precision", "command", "start"),
    ),
    TEXT,
)
SIZE = whole(1)
TERM = fields(
    {"scope": TEXT, "weight": NUMBER},
    {
        **dict.fromkeys(("start", "stop", "ramp"), maybe(whole())),
        "balance_bsz": maybe(SIZE),
        "domains": maybe(_NUMBERS),
    },
)
SCIENCE = both(
    fields(
        {},
        {
            **dict.fromkeys(("global_bsz", "micro_bsz", "seq_len", "train.steps"), SIZE),
            **dict.fromkeys(("data", "scope", "router.map", "train.precision"), TEXT),
            "balance_bsz": maybe(SIZE),
            **dict.fromkeys(("loss.balance", "data.homogeneity"), NUMBER),
            "method.options": _NUMBERS,
            "terms": each(TERM),
        },
    ),
    table(plain),
)
MANIFEST = fields(
    {},
    {
        **_TEXTS,
        "seed": SEED,
        "science": SCIENCE,
        "domains": each(TEXT),
        "heldout": each(TEXT),
        "data": fields(
            {},
            {
                **dict.fromkeys(("content_hash", "source", "tokenizer", "tokenizer_hash"), TEXT),
                "vocab_size": whole(1, 2**31),
                "trigram_bits": METRIC,
            },
        ),
        "group": fields({}, {"sequences": METRIC, "tokens": METRIC}),
        "coefficient_per_router": _NUMBERS,
        "random_max_vio": _NUMBERS,
        "random_load": table(_NUMBERS),
        "random_slowdown": METRIC,
        "git": fields({}, {"commit": maybe(TEXT), "dirty": maybe(FLAG)}),
        "threads": maybe(whole()),
        "ranks": whole(),
        "stacked": whole(),
        "kernels": fields(
            {}, {"attention": TEXT, "experts": TEXT, "compile": FLAG, "peak_flops": NUMBER}
        ),
        "shape_dependent": maybe(each(TEXT)),
        "resumed": each(fields({"step": whole()})),
    },
)
STATUS = both(
    fields(
        {"state": one_of(*STATES), "step": whole()},
        {
            **dict.fromkeys(("steps", "pid"), maybe(whole())),
            **dict.fromkeys(("seconds", "heartbeat"), maybe(NUMBER)),
            "reason": maybe(TEXT),
        },
    ),
    metrics,
)
SUMMARY = both(
    fields(
        {"files": table(DIGEST, _path), "sha256": DIGEST},
        {
            "bytes": table(whole(), _path),
            **dict.fromkeys(("status", "arm", "end"), TEXT),
            **dict.fromkeys(("steps", "tokens"), whole()),
            "seed": SEED,
            "seconds": NUMBER,
        },
    ),
    metrics,
)
ROW = both(fields({"step": whole()}, {"time": NUMBER}), metrics)
CHECKPOINT = fields({"step": whole(), "sha256": table(DIGEST, NAME)}, {"protected": FLAG})
_GROWN = fields({"bytes": whole(), "sha256": DIGEST})
PROTECTION_FILE = fields(
    {
        "rows": _GROWN,
        "files": table(each(DIGEST), _path),
        "state": DIGEST,
        "sha256": DIGEST,
    },
    {"selections": table(_GROWN, _path)},
)


def read_object(
    path: Path,
    check: Check = anything,
    *,
    versioned: bool = False,
    missing: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The object in a file.

    Args:
        check: of its content.
        versioned: whether it must be of this version.
        missing: what a file that is not there stands for; None: an error.
    """
    try:
        content = read_json(path)
    except OSError as error:
        if missing is not None and isinstance(error, FileNotFoundError):
            return missing
        raise unreadable(path, error) from None
    except ValueError as error:
        raise RecordError(f"{path}: {error}; the record is damaged") from None
    if versioned and content.get("schema_version") != SCHEMA_VERSION:
        raise RecordError(f"{path.parent}: {foreign(content)}")
    if wrong := check(content, ""):
        raise RecordError(f"{path}: {wrong}; the record is damaged")
    return content


def read_row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    """The row in a line of metrics.jsonl, by its number."""
    try:
        row = parse_json(line)
        wrong = ROW(row, "")
    except ValueError as error:
        row, wrong = {}, str(error)
    if wrong:
        raise RecordError(
            f"{path}:{number}: is not a row of metrics ({wrong}); the record is damaged"
        )
    return row


def kept_rows(
    path: Path, step: int | None = None, until: int | None = None
) -> tuple[list[dict[str, Any]], str]:
    """The rows of metrics.jsonl up to a step, all by default, without a torn last line.

    Args:
        until: bytes of the rows up to `step`, if a checkpoint tells; a row after them may be
            damaged. None: no row may be.

    Returns:
        The rows, and what is wrong with a row that is left out; "" if nothing is.

    Raises:
        RecordError: if the file cannot be read, or a row is damaged that may not be.
    """
    kept, wrong, at = [], "", 0
    try:
        for number, line in enumerate(read_lines(path, MAX_METRICS_BYTES), 1):
            try:
                row = read_row(path, number, line)
                kept += [row] if step is None or row["step"] <= step else []
            except RecordError as error:
                if until is None or at < until:
                    raise
                wrong = wrong or str(error).partition(";")[0]
            at += len(line) + 1
    except (OSError, ValueError) as error:
        if until is None or at < until:
            raise unreadable(path, error) from None
        wrong = wrong or str(unreadable(path, error))
    return kept, wrong


def foreign(content: dict[str, Any]) -> str:
    """What to say of a file of another version."""
    return (
        f"is a record of version {content.get('schema_version')}, this moebench reads version "
        f"{SCHEMA_VERSION}; use the moebench that made it"
    )


def unreadable(path: Path, error: Exception) -> RecordError:
    """The error for a file that cannot be read."""
    return RecordError(f"{path}: cannot be read ({reason(error)})")

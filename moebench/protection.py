"""What a checkpoint says of its run's record, so that a change to an unfinished run is found.

`checkpoints/step-N/record.json` holds the length and SHA-256 of the rows, and of each file of
recorded selections, up to the checkpoint, the SHA-256 of its `state.json` and of the config, the
manifest, the map and each evaluation's routing, and of its own content. A run that continues writes
its config and manifest again: their new SHA-256 is added beside the old one first, so that a crash
between the two leaves no false alarm.
`state.json` says whether there is a `record.json`, so that a deleted one is missed. Checkpoints of
earlier versions have none: their runs continue unchecked, and a message says so.
"""

import hashlib
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moebench.contents import MAX_ARRAY_BYTES
from moebench.disk import open_regular, sha256, write_json
from moebench.errors import RecordError
from moebench.record_files import CHECKPOINT, PROTECTION_FILE, STEP, read_object
from moebench.records import MAP, SEE, Record
from moebench.seals import is_sealed, with_digest
from moebench.selections import FOLDER

CHECKPOINTS = "checkpoints"  # in the directory of a run
PROTECTION = "record.json"  # in the folder of a checkpoint
STATE = "state.json"  # there, the names of its files with their SHA-256
ROWS = "metrics.jsonl"
CHUNK = 1 << 20  # bytes
PROTECTED = re.compile(rf"config\.yaml|manifest\.json|{re.escape(MAP)}|routing/step-\d+\.npz")


def checkpoint_path(run: Path, step: int) -> Path:
    """The directory of a run's checkpoint."""
    return run / CHECKPOINTS / f"step-{step}"


def steps_kept(directory: Path) -> list[int]:
    """The steps of the checkpoints in a directory, whole or damaged, ascending."""
    found = (STEP.fullmatch(path.name) for path in directory.glob("step-*"))
    return sorted(int(match[1]) for match in found if match)


def protection_of(record: Record) -> dict[str, Any]:
    """Hashes and lengths of a record as it is now, for a checkpoint."""
    path = record.path
    names = ["config.yaml", "manifest.json", MAP]
    names += [f"routing/step-{step}.npz" for step in record.routing_steps()]
    grown = sorted((path / FOLDER).glob("*.npy"))
    return {
        "rows": _prefix(path / ROWS),
        **(
            {"selections": {f"{FOLDER}/{file.name}": _prefix(file) for file in grown}}
            if grown
            else {}
        ),
        "files": {name: [sha256(path / name)] for name in names if (path / name).exists()},
    }


def write_protection(folder: Path, protection: Mapping[str, Any]) -> None:
    """Write `protection_of` a record into the folder of a checkpoint, once that is complete."""
    content = {**protection, "state": sha256(folder / STATE)}
    write_json(folder / PROTECTION, with_digest(content))


def permit(record: Record, config: bytes, manifest: bytes) -> None:
    """Let each checkpoint of a record accept a config and a manifest that are written next."""
    for step in steps_kept(record.path / CHECKPOINTS):
        folder = checkpoint_path(record.path, step)
        content = _read(folder)
        if content is None:
            continue
        for name, text in (("config.yaml", config), ("manifest.json", manifest)):
            accepted = content["files"].setdefault(name, [])
            accepted += {hashlib.sha256(text).hexdigest()} - set(accepted)
        write_json(folder / PROTECTION, with_digest(content))


def is_protected(record: Record, step: int) -> bool:
    """Whether a checkpoint has hashes of the record, or should have."""
    folder = checkpoint_path(record.path, step)
    if os.path.lexists(folder / PROTECTION):
        return True
    try:
        return bool(read_object(folder / STATE, CHECKPOINT).get("protected"))
    except RecordError:
        return False


def protected_rows(record: Record, step: int) -> int | None:
    """The bytes of the rows up to the checkpoint of a step; None if it does not tell."""
    content = _read(checkpoint_path(record.path, step))
    return None if content is None else content["rows"]["bytes"]


def record_damage(record: Record, step: int, *names: str) -> list[str]:
    """A line for each file of a record that is not what the checkpoint of a step says of it.

    What came after the checkpoint is not looked at: a run that continues cuts it.

    Args:
        names: the files to look at; none means all.
    """
    folder = checkpoint_path(record.path, step)
    if not is_protected(record, step):
        return []
    content = _read(folder)
    prefix = f"{CHECKPOINTS}/step-{step}"
    if content is None:
        there = os.path.lexists(folder / PROTECTION)
        return [f"{prefix}/{PROTECTION}: {'was changed' if there else 'is missing'}"]
    lines, files = [], content["files"]
    if _hash(folder / STATE) != content["state"]:
        lines.append(f"{prefix}/{STATE}: was changed")
    grown = {ROWS: content["rows"], **content.get("selections", {})}
    for name, part in grown.items():
        looked_at = not names or name in names
        if looked_at and _prefix_hash(record.path / name, part["bytes"]) != part["sha256"]:
            what = "a row" if name == ROWS else "an entry"
            lines.append(f"{name}: {what} up to step {step} was changed or lost")
    for name in names or files:
        found = _hash(record.path / name, MAX_ARRAY_BYTES)
        if name in files and found not in files[name]:
            lines.append(f"{name}: {'was changed' if found else 'is missing or unreadable'}")
    routed = (f"routing/step-{at}.npz" for at in record.routing_steps() if at <= step)
    wanted = (name for name in routed if not names or name in names)
    return lines + [f"{name}: was added" for name in wanted if name not in files]


def checkpoint_damage(record: Record, step: int) -> list[str]:
    """A line for each file of a checkpoint that does not match its checksum."""
    folder = checkpoint_path(record.path, step)
    prefix = f"{CHECKPOINTS}/step-{step}"
    try:
        digests = read_object(folder / STATE, CHECKPOINT)["sha256"]
    except RecordError as error:
        return [str(error).replace(str(record.path) + "/", "", 1).partition(";")[0]]
    present = {path.name for path in folder.iterdir()} - {STATE, PROTECTION}
    return [
        f"{prefix}/{name}: was changed or lost"
        for name, digest in digests.items()
        if _hash(folder / name) != digest
    ] + [f"{prefix}/{name}: was added" for name in sorted(present - digests.keys())]


def unfinished_damage(record: Record) -> list[str]:
    """A line for each file of an unfinished run that does not match what its checkpoints say."""
    lines = [
        line
        for step in steps_kept(record.path / CHECKPOINTS)
        for line in (*record_damage(record, step), *checkpoint_damage(record, step))
    ]
    return list(dict.fromkeys((*lines, *_lost_summary(record), *record.unsealed_damage())))


def _lost_summary(record: Record) -> list[str]:
    """A line if the run says that it is done, which it does once its summary is written."""
    try:
        return ["summary.json: is missing"] if record.status()["state"] == "done" else []
    except RecordError:
        return []  # named by `unsealed_damage`


def check_files(record: Record, *names: str, step: int | None = None) -> None:
    """Raise RecordError for the first of some files that is not what the run wrote.

    A finished run's files have its seal; those of an unfinished one are checked by a checkpoint,
    where they are older than it.

    Args:
        step: of the checkpoint of an unfinished run; by default the last.
    """
    if record.is_done():
        record.check_seal(*names)
        return
    kept = steps_kept(record.path / CHECKPOINTS)
    if not kept:
        return
    if lines := record_damage(record, kept[-1] if step is None else step, *names):
        raise RecordError(f"{record.path}/{lines[0]}; {SEE}")


def _read(folder: Path) -> dict[str, Any] | None:
    """The content of a checkpoint's PROTECTION; None if it is missing, changed or no such file."""
    try:
        content = read_object(folder / PROTECTION, PROTECTION_FILE)
    except RecordError:
        return None
    known = all(PROTECTED.fullmatch(name) for name in content["files"])
    return content if known and is_sealed(content) else None


def _hash(path: Path, limit: float = math.inf) -> str | None:
    """The SHA-256 of a regular file; None if it cannot be read or is larger than the limit."""
    try:
        return sha256(path, limit)
    except (OSError, ValueError):
        return None


def _prefix(path: Path) -> dict[str, Any]:
    """Length and hash of a file that grows, as it is now."""
    length = path.stat().st_size if path.exists() else 0
    return {"bytes": length, "sha256": _prefix_hash(path, length)}


def _prefix_hash(path: Path, length: int) -> str | None:
    """The SHA-256 of the first bytes of a file; None if it has fewer."""
    content = hashlib.sha256()
    if length == 0:
        return content.hexdigest()
    try:
        with open_regular(path) as file:
            while length > 0 and (part := file.read(min(CHUNK, length))):
                content.update(part)
                length -= len(part)
    except OSError:
        return None
    return None if length else content.hexdigest()

"""What a checkpoint says of its run's record, so that a change to an unfinished run is found.

`checkpoints/step-N/record.json` holds the length and SHA-256 of the rows up to the checkpoint, the
SHA-256 of its `state.json` and of the config, the manifest, the map and each evaluation's routing,
and of its own content. A run that continues writes its config and manifest again: their new SHA-256
is added beside the old one first, so that a crash between the two leaves no false alarm.
Checkpoints of earlier versions lack the file: their runs continue unchecked, and a message says so.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moebench.disk import open_regular, read_json, reason, sha256, write_json
from moebench.records import MAP, Record, digest_of, with_digest

CHECKPOINTS = "checkpoints"  # in the directory of a run
PROTECTION = "record.json"  # in the folder of a checkpoint
ROWS = "metrics.jsonl"
CHUNK = 1 << 20  # bytes
PROTECTED = re.compile(rf"config\.yaml|manifest\.json|{re.escape(MAP)}|routing/step-\d+\.npz")


def checkpoint_path(run: Path, step: int) -> Path:
    """The directory of a run's checkpoint."""
    return run / CHECKPOINTS / f"step-{step}"


def steps_kept(directory: Path) -> list[int]:
    """The steps of the whole checkpoints in a directory, ascending."""
    names = (path.parent.name.removeprefix("step-") for path in directory.glob("step-*/state.json"))
    return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9][0-9]{0,17}", name))


def protection_of(record: Record) -> dict[str, Any]:
    """Hashes and lengths of a record as it is now, for a checkpoint."""
    path = record.path
    names = ["config.yaml", "manifest.json", MAP]
    names += [f"routing/step-{step}.npz" for step in record.routing_steps()]
    length = (path / ROWS).stat().st_size if (path / ROWS).exists() else 0
    return {
        "rows": {"bytes": length, "sha256": _rows_hash(path / ROWS, length)},
        "files": {name: [sha256(path / name)] for name in names if (path / name).exists()},
    }


def write_protection(folder: Path, protection: Mapping[str, Any]) -> None:
    """Write `protection_of` a record into the folder of a checkpoint, once that is complete."""
    content = {**protection, "state": sha256(folder / "state.json")}
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
    """Whether a checkpoint has hashes of the record, whole or not."""
    return os.path.lexists(checkpoint_path(record.path, step) / PROTECTION)


def record_damage(record: Record, step: int) -> list[str]:
    """A line for each file of a record that is not what the checkpoint of a step says of it.

    What came after the checkpoint is not looked at: a run that continues cuts it.
    """
    folder = checkpoint_path(record.path, step)
    if not is_protected(record, step):
        return []
    content = _read(folder)
    prefix = f"{CHECKPOINTS}/step-{step}"
    if content is None:
        return [f"{prefix}/{PROTECTION}: was changed"]
    lines = []
    if _hash(folder / "state.json") != content["state"]:
        lines.append(f"{prefix}/state.json: was changed")
    if _rows_hash(record.path / ROWS, content["rows"]["bytes"]) != content["rows"]["sha256"]:
        lines.append(f"{ROWS}: a row up to step {step} was changed or lost")
    files = content["files"]
    for name, accepted in files.items():
        found = _hash(record.path / name)
        if found not in accepted:
            lines.append(f"{name}: {'was changed' if found else 'is missing or unreadable'}")
    routed = (f"routing/step-{at}.npz" for at in record.routing_steps() if at <= step)
    return lines + [f"{name}: was added" for name in routed if name not in files]


def checkpoint_damage(record: Record, step: int) -> list[str]:
    """A line for each file of a checkpoint that does not match its checksum."""
    folder = checkpoint_path(record.path, step)
    prefix = f"{CHECKPOINTS}/step-{step}"
    try:
        digests = read_json(folder / "state.json")["sha256"]
        named = {name: digest for name, digest in digests.items() if "/" not in name}
    except (OSError, ValueError, LookupError, AttributeError) as error:
        return [f"{prefix}/state.json: cannot be read ({reason(error)})"]
    return [
        f"{prefix}/{name}: was changed or lost"
        for name, digest in named.items()
        if _hash(folder / name) != digest
    ]


def unfinished_damage(record: Record) -> list[str]:
    """A line for each file of an unfinished run that does not match what its checkpoints say."""
    lines = [
        line
        for step in steps_kept(record.path / CHECKPOINTS)
        for line in (*record_damage(record, step), *checkpoint_damage(record, step))
    ]
    return list(dict.fromkeys(lines))


def _read(folder: Path) -> dict[str, Any] | None:
    """The content of a checkpoint's PROTECTION; None if it is missing, changed or no such file."""
    try:
        content = read_json(folder / PROTECTION)
    except (OSError, ValueError):
        return None
    rows, files = content.get("rows"), content.get("files")
    usable = (
        content.get("sha256") == digest_of(content)
        and isinstance(rows, dict)
        and type(rows.get("bytes")) is int
        and isinstance(files, dict)
        and all(PROTECTED.fullmatch(name) and isinstance(files[name], list) for name in files)
    )
    return content if usable else None


def _hash(path: Path) -> str | None:
    """The SHA-256 of a regular file; None if it cannot be read."""
    try:
        return sha256(path)
    except (OSError, ValueError):
        return None


def _rows_hash(path: Path, length: int) -> str | None:
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

"""Seals: the SHA-256 of an object's own content, and those of the files beside it.

A sealed object holds `sha256`, the digest of the rest of it. The summary of a finished run also
holds `files`, the SHA-256 of the other files of its record, and `bytes`, their sizes.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moebench.disk import finite, json_bytes, read_bytes, sha256
from moebench.errors import RecordError

SCHEMA_VERSION = 1
UNSEALED = ("status.json", "summary.json", "tasks", "tensorboard")
SMALL = 2**16  # bytes of a file that a quick look hashes whenever it was written


def with_digest(content: Mapping[str, Any]) -> dict[str, Any]:
    """An object with the SHA-256 of its own content, which it may hold already."""
    versioned = finite({"schema_version": SCHEMA_VERSION, **content})
    return {**versioned, "sha256": digest_of(versioned)}


def digest_of(content: Mapping[str, Any]) -> str:
    """The SHA-256 of an object's content, without the field that holds it."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def is_sealed(content: Mapping[str, Any]) -> bool:
    """Whether an object holds the SHA-256 of its own content."""
    return content.get("sha256") == digest_of(content)


def is_as_written(path: Path, content: Mapping[str, Any]) -> bool:
    """Whether a file's bytes are those that its content was written as.

    A digest of the content does not see a last digit that gives the same number.
    """
    return read_bytes(path) == json_bytes(content)


def seal_of(folder: Path, names: list[str]) -> dict[str, Any]:
    """The `files` and `bytes` of a summary."""
    return {
        "files": {name: sha256(folder / name) for name in names},
        "bytes": {name: (folder / name).stat().st_size for name in names},
    }


def changed(folder: Path, summary: Mapping[str, Any], name: str) -> str:
    """What is wrong with a sealed file, in one line; "" if it is as it was.

    A size that differs is found without reading the file.
    """
    path = folder / name
    if name not in summary["files"]:
        return f"{name}: was added"
    if not path.is_file():
        there = ".." not in Path(name).parts and os.path.lexists(path)
        return f"{name}: {'is not a regular file' if there else 'is missing'}"
    size = summary.get("bytes", {}).get(name)
    if size is not None and path.stat().st_size != size:
        return f"{name}: was changed"
    try:
        return "" if sha256(path) == summary["files"][name] else f"{name}: was changed"
    except OSError as error:
        return f"{name}: cannot be read ({error.strerror})"


def seen_changes(folder: Path, summary: Mapping[str, Any], sealed_at: int) -> Iterator[str]:
    """A line for each sealed file that a quick look finds changed.

    It hashes small files and those that were written after the seal, and knows of others whether
    they are there and of the right size.

    Args:
        sealed_at: when the summary was written, in nanoseconds.
    """
    for name in summary["files"]:
        try:
            state = (folder / name).stat()
            size = summary.get("bytes", {}).get(name, state.st_size)
            large = state.st_size > SMALL and state.st_size == size
            as_it_was = large and state.st_mtime_ns <= sealed_at
        except OSError:
            as_it_was = False
        if not as_it_was and (line := changed(folder, summary, name)):
            yield line


def sealable(folder: Path) -> list[str]:
    """The files that a seal covers: all but the UNSEALED and those with a hidden part."""
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(
        name.as_posix()
        for name in names
        if name.parts[0] not in UNSEALED and not any(part[0] == "." for part in name.parts)
    )


def refuse_link(folder: Path) -> None:
    """Raise RecordError if a folder that moebench writes into by its name is a link."""
    if folder.is_symlink():
        raise RecordError(
            f"{folder}: is a link to {os.path.realpath(folder)}, where nothing may be written; put "
            "what it names in its place"
        )


def refuse_links(root: Path, what: str = "the record") -> None:
    """Raise RecordError for a link out of a folder, by which its files would come elsewhere.

    Args:
        what: the folder is, in words.
    """
    own = os.path.join(os.path.realpath(root), "")
    for folder, folders, names in os.walk(root):
        for path in (os.path.join(folder, name) for name in (*folders, *names)):
            if os.path.islink(path) and not os.path.realpath(path).startswith(own):
                raise RecordError(
                    f"{path}: is a link out of {what}, where nothing may be written; put "
                    "what it names in its place"
                )

"""The cache of prepared data: folders that are written whole or not at all.

The cache is $MOEBENCH_CACHE, else $XDG_CACHE_HOME/moebench or ~/.cache/moebench. Each folder
that is made here holds one prepared result. Its name has a hash of the inputs, and manifest.json
gives the size and the SHA-256 of every file. One process at a time writes to a folder.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from moebench.disk import (
    cache_root,
    publish,
    read_json,
    remove_leftovers,
    sha256,
    why_not_written,
    write_bytes,
)
from moebench.errors import DataError
from moebench.lease import hold, is_held

FORMAT = 2  # raised when the same source would make other files
MANIFEST = "manifest.json"

Manifest = dict[str, Any]


def folder_of(name: str, made_from: Any) -> Path:
    """The folder of the result whose inputs are these JSON values.

    Raises DataError if there is no place for a cache.
    """
    digest = hashlib.sha256(to_json([FORMAT, made_from])).hexdigest()
    try:
        return cache_root() / f"{name}-{digest[:16]}"
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}: {error.strerror}") from None


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest; None if it is missing, of another format, or a file's size differs from it."""
    try:
        manifest = read_json(folder / MANIFEST)
        sizes = {name: (folder / name).stat().st_size for name in manifest["files"]}
        matches = manifest["format"] == FORMAT and all(
            sizes[name] == file["bytes"] for name, file in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return manifest if matches else None


def check(folder: Path, manifest: Manifest, *, only_modified: bool = False) -> None:
    """Compare files with the manifest; discard the folder and raise DataError if one differs.

    Args:
        only_modified: hash only the files that were modified after the manifest was written.
    """
    path = folder / MANIFEST
    written = path.stat().st_mtime_ns
    names = [
        name
        for name in manifest["files"]
        if not (only_modified and (folder / name).stat().st_mtime_ns <= written)
    ]
    for name in names:
        file = folder / name
        if not file.is_file() or sha256(file) != manifest["files"][name]["sha256"]:
            discard(folder)
            raise DataError(
                f"{file}: does not match its checksum; the cache is discarded, make it again "
                "with `moebench data prepare`"
            )
    if names:
        with suppress(OSError):
            path.touch()  # so that they are not hashed again next time


def make_folder(
    folder: Path, build: Callable[[Path], Manifest], say: Callable[[str], None]
) -> Manifest:
    """The manifest of a folder of the cache. If the folder is missing, `build` makes it.

    Args:
        build: fills the folder that it is given, and returns the manifest without `format` and
            `files`. The folder still holds what a killed or interrupted process left in it, so
            that `build` can continue; after an error it starts empty.
        say: gets a line if another process is making the folder.

    Raises DataError if the cache cannot be written, or if a file in it was changed.
    """
    if manifest := read_manifest(folder):
        check(folder, manifest, only_modified=True)
        return manifest
    with locked(folder, say):
        if manifest := read_manifest(folder):  # made by another process while this one waited
            return manifest
        aside = folder.with_name(folder.name + ".partial")
        aside.mkdir(exist_ok=True)
        remove_leftovers(aside)
        try:
            manifest = {**build(aside), "format": FORMAT, "files": _files(aside)}
            write_bytes(aside / MANIFEST, to_json(manifest, indent=1))
            publish(aside, folder)
        except Exception:  # not KeyboardInterrupt: the next call continues
            shutil.rmtree(aside, ignore_errors=True)
            raise
    return manifest


def remembered(
    folder: Path,
    manifest: Manifest,
    key: str,
    compute: Callable[[], Any],
    say: Callable[[str], None],
) -> Any:
    """A JSON value that follows from a folder's files; computed once and kept in its manifest.

    Where the cache cannot be written, the value is computed each time.

    Args:
        folder, manifest: of the cache.
        key: names the value under `derived`.
        compute: computes it.
        say: gets a line if another process holds the folder.
    """
    known = manifest.get("derived", {})
    if key not in known:
        value = compute()
        with suppress(DataError), locked(folder, say):
            known |= (read_manifest(folder) or manifest).get("derived", {}) | {key: value}
            manifest["derived"] = known
            write_bytes(folder / MANIFEST, to_json(manifest, indent=1))
        return value
    return known[key]


def _files(folder: Path) -> dict[str, Any]:
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST
    }


@contextmanager
def locked(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Lock a folder of the cache; DataError if the cache cannot be written."""
    path = folder.with_name(f"{folder.name}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if is_held(path):
            say("waiting for another process that prepares the same data")
        with hold(path, wait=True):
            yield
    except OSError as error:
        raise DataError(
            f"{error.filename or folder}: the cache cannot be written "
            f"({why_not_written(folder, error)}); set MOEBENCH_CACHE to a folder that can be"
        ) from None


def discard(folder: Path) -> None:
    """Mark a damaged folder, so that it is made again."""
    with locked(folder, lambda _: None):
        (folder / MANIFEST).unlink(missing_ok=True)


def to_json(value: Any, indent: int | None = None) -> bytes:
    """JSON that is equal for equal values."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, indent=indent).encode()

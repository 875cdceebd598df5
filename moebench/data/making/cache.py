"""Folders of the cache: made aside, whole or not at all, by one process at a time.

The cache lies in $MOEBENCH_CACHE, else in $XDG_CACHE_HOME/moebench or ~/.cache/moebench. It has a
folder for each thing that was made, named after a hash of all that it was made from, with a
manifest.json that names every file with its size and sha256.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from moebench.disk import cache_root, publish, read_json, remove_leftovers, sha256, write_bytes
from moebench.errors import DataError

FORMAT = 2  # raised when the same source would make other files
MANIFEST = "manifest.json"

Manifest = dict[str, Any]


def folder_of(name: str, made_from: Any) -> Path:
    """Where that which is made from these JSON values lies."""
    digest = hashlib.sha256(to_json([FORMAT, made_from])).hexdigest()
    return cache_root() / f"{name}-{digest[:16]}"


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest, if it is there, of this format, and every file has the size that it says."""
    try:
        manifest = read_json(folder / MANIFEST)
        sizes = {name: (folder / name).stat().st_size for name in manifest["files"]}
        right = manifest["format"] == FORMAT and all(
            sizes[name] == known["bytes"] for name, known in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return manifest if right else None


def check(folder: Path, manifest: Manifest, *, since_made: bool = False) -> None:
    """Hash files again; where one is damaged, discard the folder and raise DataError.

    Args:
        folder, manifest: the files and what is known of them.
        since_made: only those that were written to after the manifest was.
    """
    path = folder / MANIFEST
    made = path.stat().st_mtime_ns
    names = [
        name
        for name in manifest["files"]
        if not (since_made and (folder / name).stat().st_mtime_ns <= made)
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
            path.touch()  # so that they are not hashed each time


def make_folder(
    folder: Path, build: Callable[[Path], Manifest], say: Callable[[str], None]
) -> Manifest:
    """The manifest of a folder of the cache, which `build` makes where it is not there.

    Args:
        build: fills a folder aside, and returns the manifest without `format` and `files`. What a
            process that was killed or interrupted left in that folder is still there, for it to
            go on from; after an error nothing is.
        say: told if another process is at it.

    Raises DataError if the cache cannot be written, or was written to.
    """
    if manifest := read_manifest(folder):
        check(folder, manifest, since_made=True)
        return manifest
    with locked(folder, say):
        if manifest := read_manifest(folder):  # another process made it while this one waited
            return manifest
        aside = folder.with_name(folder.name + ".partial")
        aside.mkdir(exist_ok=True)
        remove_leftovers(aside)
        try:
            known = build(aside)
            names = sorted(path.name for path in aside.iterdir() if path.name != MANIFEST)
            manifest = {**known, "format": FORMAT, "files": _files(aside, names, known)}
            write_bytes(aside / MANIFEST, to_json(manifest, indent=1))
            publish(aside, folder)
        except Exception:  # not KeyboardInterrupt: the next call goes on from there
            shutil.rmtree(aside, ignore_errors=True)
            raise
    return manifest


def _files(folder: Path, names: list[str], known: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
        for name in names
    }


@contextmanager
def locked(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Alone with a folder of the cache; DataError if the cache cannot be written."""
    lock = FileLock(f"{folder}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say("waiting for another process that prepares the same data")
            lock.acquire()
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename or folder}: the cache cannot be written ({error.strerror}); set "
            "MOEBENCH_CACHE to a folder that can be"
        ) from None
    finally:
        lock.release()


def discard(folder: Path) -> None:
    """Make sure that a damaged folder is made again."""
    with locked(folder, lambda _: None):
        (folder / MANIFEST).unlink(missing_ok=True)


def to_json(value: Any, indent: int | None = None) -> bytes:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, indent=indent).encode()

"""Files on disk: atomic writes, checksums, and bounded reads of files that others wrote.

A file or folder is written aside as `.NAME.PID.tmp`, synced, then renamed, and the folder that
holds its name is synced. After a crash, its name refers to the old or the new content, never to a
part of it. A folder is removed under such a name, too.

Readers accept regular files only, since a pipe or a device may never end, and `open_regular` is the
one door to them. What is read whole is bounded. Readers raise OSError, ValueError or, for YAML,
`yaml.YAMLError`; `reason` gives the cause in one line.
"""

import errno
import gzip
import hashlib
import io
import json
import math
import os
import shutil
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

import yaml

MAX_BYTES = 2**28  # of a file that is read whole
MAX_JSON_BYTES = 2**26  # a plan has a few thousand a run; to parse more takes seconds
MAX_LINE_BYTES = 2**24  # a row of metrics has tens of thousands
MAX_DEPTH = 16  # of nested tables and lists; a config has three
MAX_DIGITS = 20  # of a whole number
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a disk without room
LEFTOVERS = ".*.tmp"  # files and folders that a killed process was writing aside

# Places


def cache_root() -> Path:
    """moebench's cache folder: $MOEBENCH_CACHE, $XDG_CACHE_HOME/moebench or ~/.cache/moebench.

    Raises FileNotFoundError if none of them can be found: this user has no home directory.
    """
    if given := os.environ.get("MOEBENCH_CACHE"):
        return expanded(given)
    root = expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "moebench"
    if root.parts[0] == "~":
        why = "there is no home directory; set MOEBENCH_CACHE to a folder for the cache"
        raise FileNotFoundError(errno.ENOENT, why, str(root))
    return root


def expanded(path: str) -> Path:
    """A path with the home directory in place of ~; unchanged where that directory is unknown."""
    return Path(os.path.expanduser(path))  # Path.expanduser raises there


def is_name(text: str) -> bool:
    """Whether a text names something in a folder: no path, nothing hidden, no control character.

    What a plan or a record names is checked by this before it is joined to a path.
    """
    plain = "/" not in text and text.isprintable() and not text.startswith(".")
    return plain and 0 < len(os.fsencode(text)) <= 255


# Writing


@contextmanager
def replacing(path: Path, *, lasting: bool = True) -> Iterator[IO[bytes]]:
    """Open a file that replaces `path` when the block ends without an error.

    It makes the folder of `path` if that is missing. Each call here is a request to the server of a
    shared directory, so there are as few as can be.

    Args:
        lasting: whether the new file must outlast a loss of power, whatever is written next.
    """
    aside = _aside(path)
    try:
        with _created(aside) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        if lasting:
            _sync_folder(path.parent)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Make an empty folder that replaces `path` when the block ends without an error."""
    aside = _aside(path)
    shutil.rmtree(aside, ignore_errors=True)
    make_folder(aside)
    try:
        yield aside
        publish(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def publish(aside: Path, path: Path) -> None:
    """Give a file or folder that was written aside its final name, once its content is on disk.

    The rename is synced too, so that what comes next on disk never outlives it.
    """
    if aside.is_dir():
        for part in aside.rglob("*"):
            _sync_folder(part) if part.is_dir() else _sync(part)
        _sync_folder(aside)
        if path.exists():
            remove_folder(path)
    else:
        _sync(aside)
    os.replace(aside, path)
    _sync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, where they are missing; their names are synced."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def remove_folder(folder: Path) -> None:
    """Delete a folder. If this is killed, what is left has a hidden name, see `LEFTOVERS`."""
    aside = _aside(folder).with_suffix(".old.tmp")
    os.replace(folder, aside)
    _sync_folder(folder.parent)  # else a loss of power could leave a part under the old name
    shutil.rmtree(aside, ignore_errors=True)
    _sync_folder(folder.parent)  # else what was deleted could be back under its hidden name


def write_bytes(path: Path, content: bytes, *, lasting: bool = True) -> None:
    """Write a file atomically, and its folder if that is missing; see `replacing`."""
    with replacing(path, lasting=lasting) as file:
        file.write(content)


def open_to_append(path: Path) -> IO[bytes]:
    """Open a regular file to write at its end; it is made where it is missing.

    Raises OSError for anything else, without waiting for it.
    """
    if os.path.lexists(path):
        regular_status(path)
    return open(path, "ab", opener=_open_at_once)


def write_json(path: Path, content: Mapping[str, Any], *, lasting: bool = True) -> None:
    """Write an object as readable JSON, atomically. Values that are not finite become null."""
    write_bytes(path, json_bytes(content), lasting=lasting)


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """The content of the file that `write_json` writes."""
    return json.dumps(finite(content), indent=2, allow_nan=False).encode() + b"\n"


def finite(value: Any) -> Any:
    """The same value with None in place of every float that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes were writing aside in a folder and below."""
    for path in list(folder.rglob(LEFTOVERS)):
        whole = path.is_dir() and not path.is_symlink()
        shutil.rmtree(path) if whole else path.unlink(missing_ok=True)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _created(path: Path) -> IO[bytes]:
    try:
        return open(path, "wb")
    except FileNotFoundError:
        make_folder(path.parent)
        return open(path, "wb")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # some file systems do not sync folders
        _sync(folder)


def why_not_written(path: Path, error: OSError) -> str:
    """Why something below a folder could not be written, with the free bytes of a full disk."""
    reason = error.strerror or str(error)
    if error.errno != errno.ENOSPC:
        return reason
    there = next(folder for folder in (path, *path.parents) if folder.is_dir())
    return f"{reason}: {shutil.disk_usage(there).free:,} bytes are free"


# Reading


def sha256(path: Path, limit: float = math.inf) -> str:
    """The SHA-256 of the content of a regular file of at most `limit` bytes, as hex digits."""
    with open_regular(path) as file:
        _check_size(os.fstat(file.fileno()).st_size, limit)
        return hashlib.file_digest(file, "sha256").hexdigest()


def regular_status(path: Path) -> os.stat_result:
    """The status of a regular file. Raises OSError for a folder, a pipe, a device or a socket."""
    return _regular(os.stat(path), path)


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file for reading. Raises OSError for anything else, without waiting for it."""
    regular_status(path)  # first, because to open a device may already act on it
    file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115
    try:
        _regular(os.fstat(file.fileno()), path)  # it may have been replaced
    except OSError:
        file.close()
        raise
    return file


@contextmanager
def unpacked(path: Path) -> Iterator[IO[bytes]]:
    """Open a regular file, decompressed while it is read if its name ends in .gz or .zst.

    The caller bounds reads: a small file may hold gigabytes. A broken file raises ValueError.
    """
    packed = path.suffix.lower()
    with open_regular(path) as file:
        try:
            if packed == ".gz":
                with gzip.open(file) as plain:
                    yield cast(IO[bytes], plain)
            elif packed == ".zst":
                import pyarrow

                stream = pyarrow.CompressedInputStream(file, "zstd")
                with io.BufferedReader(stream, 1 << 20) as plain:
                    yield plain
            else:
                yield file
        except (EOFError, zlib.error) as error:
            raise ValueError(f"broken gzip ({error})") from None
        except OSError as error:
            if error.errno is not None:
                raise
            name = "gzip" if packed == ".gz" else "zstd"
            raise ValueError(f"broken {name} ({reason(error)})") from None


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """The content of a regular file of at most `limit` bytes."""
    with open_regular(path) as file:
        _check_size(os.fstat(file.fileno()).st_size, limit)
        return _bounded(file, limit)


def read_unpacked(path: Path, limit: int = MAX_BYTES) -> bytes:
    """The content of a regular file, of at most `limit` bytes once it is decompressed."""
    with unpacked(path) as file:
        return _bounded(file, limit)


def read_lines(path: Path, limit: int = MAX_BYTES) -> Iterator[bytes]:
    """The whole lines of a regular file of at most `limit` bytes; not a last one without an end.

    Only a line at a time is in memory, of at most MAX_LINE_BYTES.
    """
    with open_regular(path) as file:
        _check_size(os.fstat(file.fileno()).st_size, limit)
        while (line := file.readline(MAX_LINE_BYTES + 1)).endswith(b"\n"):
            yield line[:-1]
        if len(line) > MAX_LINE_BYTES:
            raise ValueError(f"has a line of more than {MAX_LINE_BYTES >> 20} MiB")


def _bounded(file: IO[bytes], limit: int) -> bytes:
    content = file.read(limit + 1)
    _check_size(len(content), limit)
    return content


def _check_size(size: int, limit: float) -> None:
    if size > limit:
        limit = int(limit)
        unit, most = ("MiB", limit >> 20) if limit >> 20 else ("KiB", limit >> 10)
        raise ValueError(f"is larger than {most} {unit}")


def _regular(status: os.stat_result, path: Path) -> os.stat_result:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return status


def _open_at_once(path: str, flags: int) -> int:
    return os.open(
        path, flags | os.O_NONBLOCK, 0o666
    )  # else opening a pipe waits for its other end


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    return parse_json(read_bytes(path, MAX_JSON_BYTES))


def read_checked(path: Path, check: Callable[[Any, str], str]) -> tuple[dict[str, Any], str]:
    """The JSON object in a file, and what a check of `contents` finds wrong, "" if nothing.

    Of a file that cannot be read, an empty object and the reason.
    """
    try:
        content = read_json(path)
        return content, check(content, "")
    except (OSError, ValueError) as error:
        return {}, reason(error)


def parse_json(text: bytes) -> dict[str, Any]:
    """A JSON object from its text. Raises ValueError for anything that no writer here makes:

    other JSON, NaN and infinity, a whole number of more than MAX_DIGITS, deeper than MAX_DEPTH.
    """
    try:
        content = json.loads(text, parse_int=_whole, parse_constant=_whole)
    except _NumberError:
        raise
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ValueError("is not a JSON object")
    if text.count(b"{") + text.count(b"[") > MAX_DEPTH and _depth(content) > MAX_DEPTH:
        raise ValueError("is nested too deeply")
    return content


class _NumberError(ValueError):
    """A number that no writer here makes."""


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS or digits[-1] in "Ny":  # NaN and Infinity
        many = f"a number of {len(digits)} digits"
        raise _NumberError(f"holds {many if len(digits) > MAX_DIGITS else digits}")
    return int(digits)


def _depth(content: Any) -> int:
    """How deeply tables and lists are nested, at most MAX_DEPTH + 1."""
    depth, level = 0, [content]
    while level and depth <= MAX_DEPTH:
        depth += 1
        tables = (item.values() if isinstance(item, dict) else item for item in level)
        level = [item for table in tables for item in table if isinstance(item, dict | list)]
    return depth


def reason(error: BaseException) -> str:
    """Why a file could not be read or written, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"{error.problem} in line {error.problem_mark.line + 1}"
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")

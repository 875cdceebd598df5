"""A disk that fails on demand: it refuses, dies, or runs full at any operation of a process.

`preload` must come before the server of the tests' processes starts. `trouble` then gives the
environment of a process, or is put into this one's.
"""

import hashlib
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from tests.torture.topic import Untried

SOURCE = Path(__file__).with_name("disk.c")
VARIABLE = "TORTURE_DISK"


class Mode(IntEnum):
    """What happens at an operation; the order is that of disk.c."""

    RECORD = 0  # nothing: operations are counted
    FAIL = 1  # it fails, once
    KILL = 2  # the process is killed before it
    SHORT = 3  # of a write: half is written, and the rest of it fails
    FULL = 4  # from a number of bytes on, all that needs space fails


def library() -> Path:
    """The compiled library, made once for each source. Raises Untried without a compiler."""
    if sys.platform != "linux" or not shutil.which("gcc"):
        raise Untried("a disk that fails on demand needs Linux and gcc")
    name = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    made = Path(tempfile.gettempdir()) / f"moebench-torture-{name}.so"
    if not made.exists():
        with tempfile.TemporaryDirectory(dir=made.parent) as folder:
            aside = Path(folder) / made.name
            options = ["-std=gnu17", "-O1", "-shared", "-fPIC"]
            subprocess.run(["gcc", *options, str(SOURCE), "-o", str(aside), "-ldl"], check=True)
            aside.replace(made)
    return made


def preload() -> None:
    """Let processes that this one starts have such a disk."""
    os.environ["LD_PRELOAD"] = str(library())


class Operation(NamedTuple):
    """An operation of a log.

    Attributes:
        kind: create, write, cut, sync, rename, link, folder, delete, or mark.
        path, to: of the file or folder, and its new name.
        offset: of a write; the length after a cut.
        data: that was written.
    """

    kind: str
    path: str
    to: str
    offset: int
    data: bytes


@dataclass
class Disk:
    """A disk below a folder.

    Attributes:
        folder: what counts.
        place: of the counter, and of the log if there is one.
    """

    folder: Path
    place: Path
    logs: bool = False

    def __post_init__(self) -> None:
        self.place.mkdir(parents=True, exist_ok=True)
        self.counter = self.place / "counter"
        self.log = self.place / "log"
        self.counter.write_bytes(bytes(24))
        if self.logs:
            self.log.write_bytes(b"")

    def trouble(self, mode: Mode, at: int = 0, error: int = 0) -> str:
        """The value of VARIABLE that makes something happen at an operation, counted from 1."""
        log = self.log if self.logs else "-"
        return f"{int(mode)} {at} {error} {self.counter} {log} {self.folder.resolve()}"

    def mark(self, text: str) -> None:
        """Write a line into the log, between operations."""
        with open(self.log, "ab") as file:
            file.write(f"mark\t{text}\t\t0\t0\n".encode())

    def logged(self) -> Iterator["Operation"]:
        """What was done below the folder, in order, and the marks between."""
        content, at = self.log.read_bytes(), 0
        while at < len(content):
            end = content.index(b"\n", at)
            kind, path, to, offset, size = content[at:end].decode().split("\t")
            at = end + 1 + int(size)
            yield Operation(kind, path, to, int(offset), content[end + 1 : at])

    @property
    def operations(self) -> int:
        return self._counts()[0]

    @property
    def bytes(self) -> int:
        return self._counts()[1]

    @property
    def met(self) -> bool:
        """Whether the trouble has come."""
        return bool(self._counts()[2])

    def _counts(self) -> tuple[int, int, int]:
        return struct.unpack("3l", self.counter.read_bytes())

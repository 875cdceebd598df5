"""The command line called in this process, with what it wrote, connected to and started."""

import io
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from moebench.cli import app, exit_codes
from moebench.processes import STOPPING

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGING = (
    "os.rename",
    "os.mkdir",
    "os.remove",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "os.truncate",
)
CONNECTING = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.gethostbyname")
STARTING = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen")


@dataclass
class Deeds:
    """What a call did to the world: paths that it changed, hosts and programs that it named."""

    changed: list[str] = field(default_factory=list)
    connected: list[str] = field(default_factory=list)
    started: list[str] = field(default_factory=list)


@dataclass
class Call:
    """A call of the command line: how it ended, and its deeds; `seconds` are of the processor."""

    code: int
    out: str
    err: str
    seconds: float
    deeds: Deeds


_watching: list[Deeds] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    deeds = _watching[-1]
    if event == "open":
        path, _, flags = arguments
        if isinstance(path, str | bytes) and isinstance(flags, int) and flags & WRITING:
            deeds.changed.append(os.path.abspath(os.fsdecode(path)))
    elif event in ("os.remove", "os.rmdir") and arguments[1] != -1:
        pass  # in a folder that is open, as `shutil.rmtree` does: its own path is noted
    elif event in CHANGING:
        named = [path for path in arguments[:2] if isinstance(path, str | bytes)]
        deeds.changed += [os.path.abspath(os.fsdecode(path)) for path in named]
    elif event in CONNECTING:
        where = arguments[-1] if event == "socket.connect" else arguments[0]
        deeds.connected.append(f"{event} {where}")
    elif event in STARTING:
        deeds.started.append(str(arguments[0]))


sys.addaudithook(_hook)  # for the whole process: a hook cannot be taken away


@contextmanager
def watched() -> Iterator[Deeds]:
    """Note what happens meanwhile."""
    deeds = Deeds()
    _watching.append(deeds)
    try:
        yield deeds
    finally:
        _watching.pop()


def call(words: Sequence[str], place: Path) -> Call:
    """Call the command line in a folder, which also gets what the user's home gets."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    before, here = {number: signal.getsignal(number) for number in STOPPING}, Path.cwd()
    home = {"HOME": str(place), "COLUMNS": "100", "MPLCONFIGDIR": str(place / "cache")}
    os.chdir(place)
    try:
        with (
            patch.dict(os.environ, home),
            patch.object(sys, "argv", ["moebench", *words]),
            patch.object(sys, "dont_write_bytecode", True),
            redirect_stdout(out),
            redirect_stderr(err),
            watched() as deeds,
        ):
            began = time.process_time()
            code = exit_codes.run(app, list(words))
            seconds = time.process_time() - began
    finally:
        os.chdir(here)
        for number, handler in before.items():
            signal.signal(number, handler)
    said, errors = (stream.buffer.getvalue().decode() for stream in (out, err))  # pyright: ignore
    return Call(code, said, errors, seconds, deeds)


def assert_in_order(made: Call, allowed: Sequence[Path], limit: float) -> None:
    """A call ended as a command must: with its output, or with errors of one line each."""
    lines = made.err.splitlines()
    assert made.code in (0, 1, 2, 3), f"exit code {made.code}"
    assert "bug in moebench" not in made.err, lines[-1]
    assert "Traceback" not in made.err, lines[-1]
    if made.code:
        errors = [line for line in lines if line.startswith("error: ")]
        assert errors or made.code == 1, f"no error is named: {made.err}{made.out}"
        assert max(map(len, errors), default=0) < 4000, "an error is too long to read"
    assert "\x1b" not in made.err + made.out, "a control character reaches the terminal"
    assert made.seconds < limit, f"takes {made.seconds:.1f} s"
    roots = [*map(os.path.realpath, allowed), "/dev/null"]
    for path in made.deeds.changed:
        real = os.path.realpath(path)
        assert any(real == root or real.startswith(f"{root}/") for root in roots), f"writes {path}"
    assert not made.deeds.connected, f"connects: {made.deeds.connected[0]}"

"""What a call of the command line gives in tests (the fixture `call` makes it), and processes."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class Result(NamedTuple):
    code: int
    out: str
    err: str


Call = Callable[..., Result]


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

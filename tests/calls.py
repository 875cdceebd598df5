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

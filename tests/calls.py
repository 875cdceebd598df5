"""What a call of the command line gives in tests; the fixture `call` makes it."""

import signal
from collections.abc import Callable
from typing import NamedTuple

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Result(NamedTuple):
    code: int
    out: str
    err: str


Call = Callable[..., Result]

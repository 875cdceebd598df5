"""How processes are started by `multiprocessing`, and which signals stop them."""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


def stop_signals() -> list[signal.Signals]:
    """The signals that stop a command in order. Under `nohup`, a closed terminal stops nothing."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in STOPPING if number != signal.SIGHUP or not ignored]


@contextmanager
def collected() -> Iterator[list[int]]:
    """Collect the stop signals that arrive, in a list; a second SIGINT interrupts at once."""
    arrived: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield arrived
        return

    def collect(number: int, _frame: Any) -> None:
        if number == signal.SIGINT and arrived:
            raise KeyboardInterrupt
        arrived.append(number)

    before = {number: signal.signal(number, collect) for number in stop_signals()}
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def starting(environ: Mapping[str, str] | None = None) -> Iterator[None]:
    """Start processes that do not run the user's script again, and leave Ctrl-C to this one.

    A spawned process imports the `__main__` of its parent, here an empty module, and inherits the
    blocked signals.

    Args:
        environ: what the processes find in their environment, beside what this one has.
    """
    main, environ = sys.modules["__main__"], environ or {}
    before = {name: os.environ.get(name) for name in environ}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    sys.modules["__main__"] = ModuleType("__main__")
    os.environ.update(environ)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        sys.modules["__main__"] = main
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

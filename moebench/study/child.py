"""Processes that begin with torch imported: they are forked from a server that has imported it."""

import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path

from moebench.processes import starting

GRACE = 30.0  # seconds to complete a step and save a checkpoint before a process is killed
PRELOADED = ["moebench.study.server"]  # what the server imports before it forks
# A process that has called Apple's frameworks cannot fork.
METHOD = "forkserver" if sys.platform == "linux" else "spawn"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def start(
    module: str, words: Sequence[str], log: Path, environ: Mapping[str, str] | None = None
) -> BaseProcess:
    """Start `python -m module words`, with one thread, in a session of its own.

    It gets this process's environment, working directory and `sys.path`, writes to the end of
    `log`, and is stopped when this process has ended, for whatever reason.

    Args:
        environ: what it finds in its environment beside that.

    Raises:
        OSError: the process cannot be started.
    """
    context = get_context(METHOD)
    if METHOD == "forkserver":
        context.set_forkserver_preload(PRELOADED)
    around = {**os.environ, **ONE_THREAD, **(environ or {})}
    process = context.Process(target=_run, args=(module, list(words), str(log), around))
    with _server():
        try:
            process.start()
        except EOFError as error:
            raise OSError(f"the server of processes ended: {error}") from None
    return process


def warm() -> None:
    """Start the server of `start`, so that it imports torch while this process does other things.

    It ends with this process.
    """
    if METHOD == "forkserver":
        get_context(METHOD).set_forkserver_preload(PRELOADED)
        with _server(), suppress(OSError):  # `start` says why it cannot
            forkserver.ensure_running()


@contextmanager
def _server() -> Iterator[None]:
    """What the server finds: the same code as this process, nothing else of its directory."""
    path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    with starting({**ONE_THREAD, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}):
        yield


def _run(module: str, words: Sequence[str], log: str, environ: dict[str, str]) -> None:
    """In the new process: what `python -m` does."""
    os.setsid()  # Ctrl-C reaches only the sweep, which then ends its jobs
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.environ.clear()
    os.environ.update(environ)
    for path, number, mode in (
        (os.devnull, 0, os.O_RDONLY),
        (log, 1, os.O_WRONLY | os.O_APPEND | os.O_CREAT),
    ):
        file = os.open(path, mode, 0o644)
        os.dup2(file, number)
        os.close(file)
    os.dup2(1, 2)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _end_with_parent() -> None:
    """Stop this process when the process that asked for it has ended."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os.kill(os.getpid(), signal.SIGKILL)

"""How a command ends: errors and signals become one line on stderr and an exit code.

| code | meaning |
|---|---|
| 0 | done |
| 1 | failed |
| 2 | usage, config, data, or nothing to report |
| 3 | a sweep of which some runs failed (`sweep` exits with it) |
| 75 | stopped by SIGTERM, SIGUSR1 or SIGHUP, can be resumed (EX_TEMPFAIL, for batch systems) |
| 130 | stopped by SIGINT, can be resumed |
"""

import errno
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

import typer

from moebench.cli.output import print_error
from moebench.errors import MoebenchError, Stopped, lacks_memory
from moebench.processes import stop_signals

FAILED = 1
USAGE = 2
PARTLY_FAILED = 3
STOPPED = 75
INTERRUPTED = 130

_RESUMABLE = ("train", "sweep")


def run(app: typer.Typer, words: Sequence[str]) -> int:
    """Run the command in `words` and return its exit code; every error is one line on stderr.

    Unexpected exceptions pass through where MOEBENCH_DEBUG is set.
    """
    received = _interrupt_on_signals()
    try:
        code = _call(app, words, received)
    except KeyboardInterrupt:  # also while an error was reported
        code = INTERRUPTED
    finally:
        _ignore_signals()  # the end is near, and nothing is left to stop
    # Typer turns every KeyboardInterrupt into this code, whichever signal caused it.
    return _report_signal(received[0], words) if received and code == INTERRUPTED else code


def _call(app: typer.Typer, words: Sequence[str], received: Sequence[int]) -> int:
    try:
        code = app(words, prog_name="moebench", standalone_mode=False) or 0
        print(end="", flush=True)  # so that output that cannot be written raises here
    except Exception as error:
        # a library that is interrupted between two changes of its own may raise another error
        of_signal = received and not isinstance(error, Stopped)
        return INTERRUPTED if of_signal else _report(error)
    return code


def _ignore_signals() -> None:
    """Ignore the stopping signals, one of which may arrive meanwhile."""
    for number in stop_signals():
        while signal.getsignal(number) != signal.SIG_IGN:
            with suppress(KeyboardInterrupt):
                signal.signal(number, signal.SIG_IGN)


def _interrupt_on_signals() -> list[int]:
    """Make each stopping signal raise KeyboardInterrupt; returns a list of the signals received."""
    received: list[int] = []

    def interrupt(number: int, _frame: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    for number in stop_signals():
        signal.signal(number, interrupt)
    return received


def _report(error: Exception) -> int:
    """Print an error and return its exit code."""
    if isinstance(error, MoebenchError):
        for line in error.lines:
            print_error(line)
        return error.exit_code
    if isinstance(error, typer.TyperException):
        if message := error.format_message():  # empty if the help was printed instead
            print_error(message)
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        # The reader of the output stopped early, as in `| head`: nothing to report, and nothing
        # may be written when Python flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    if os.environ.get("MOEBENCH_DEBUG"):
        raise error
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        print_error(f"{error.object}: is not UTF-8, as names of files must be; rename it")
        return USAGE
    print_error(_describe(error))
    return FAILED


def _describe(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno != errno.ENOMEM:
        file = f"{error.filename}: " if error.filename else ""
        return f"{file}{error.strerror or error}"
    if lacks_memory(error):
        return "out of memory; free some, or take a smaller model or fewer processes"
    return (
        f"unexpected {type(error).__name__}: {error}; this is a bug in moebench "
        "(MOEBENCH_DEBUG=1 shows where)"
    )


def _report_signal(number: int, words: Sequence[str]) -> int:
    """Print which signal stopped the command and how to continue; returns the exit code."""
    resumable = words and words[0] in _RESUMABLE
    remedy = "; to continue, repeat the sweep, or the run with --resume" if resumable else ""
    print_error(f"stopped by {signal.Signals(number).name}{remedy}")
    return INTERRUPTED if number == signal.SIGINT else STOPPED

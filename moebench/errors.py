"""What can go wrong, as the user sees it: one line that names key, value and remedy.

Every error that a user can cause or cure is a `MoebenchError`; the command line prints its text
after `error: ` and exits with its code. Anything else that escapes is a bug.
"""

import signal
from pathlib import Path


class MoebenchError(Exception):
    """Base of all errors with a message for the user."""

    exit_code = 1


class ConfigError(MoebenchError):
    """A key, value or combination of them that cannot work."""

    exit_code = 2


class DataError(MoebenchError):
    """Data that is missing, empty, broken or too little."""

    exit_code = 2


class RecordError(MoebenchError):
    """A run record that is missing, damaged or of another kind."""

    exit_code = 2


class LockedError(RecordError):
    """A run that another process trains."""


class TrainingError(MoebenchError):
    """A run that cannot go on: a loss that is not finite, memory or disk that ran out."""

    exit_code = 1


class Stopped(MoebenchError):  # noqa: N818, stopping is no error
    """A run that a signal stopped after a checkpoint, and that `--resume` continues.

    The exit code is 130 for SIGINT, else 75, which batch systems read as "try again".
    """

    def __init__(self, path: Path, step: int, number: int) -> None:
        super().__init__(
            f"{path}: stopped by {signal.Signals(number).name} at step {step}; "
            "--resume goes on from there"
        )
        self.exit_code = 130 if number == signal.SIGINT else 75

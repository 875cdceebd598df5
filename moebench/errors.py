"""What can go wrong, as the user sees it: one line that names key, value and remedy.

Every error that a user can cause or cure is a `MoebenchError`; the command line prints its text
after `error: ` and exits with its code. Anything else that escapes is a bug.
"""

import signal
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


class MoebenchError(Exception):
    """Base of all errors with a message for the user."""

    exit_code = 1

    @property
    def lines(self) -> tuple[str, ...]:
        """What is said, a line for each thing that is wrong."""
        return (str(self),)


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


class Several(MoebenchError):  # noqa: N818, it is several errors
    """Errors of which none hides another; the exit code is that of the first."""

    def __init__(self, errors: Sequence[MoebenchError]) -> None:
        self._lines = tuple(dict.fromkeys(line for each in errors for line in each.lines))
        self.exit_code = errors[0].exit_code
        super().__init__("\n".join(self._lines))

    @property
    def lines(self) -> tuple[str, ...]:
        return self._lines


def together(errors: Sequence[MoebenchError]) -> MoebenchError:
    """Some errors, or the only one, as one to raise."""
    return Several(errors) if len(errors) > 1 else errors[0]


def each_of(act: Callable[[Item], Made], items: Iterable[Item]) -> list[Made]:
    """`act` of each item. Errors are raised together, so that all can be mended at once.

    What several items have wrong in common is said once.
    """
    made: list[Made] = []
    errors: dict[str, MoebenchError] = {}
    for item in items:
        try:
            made.append(act(item))
        except MoebenchError as error:
            errors.setdefault(str(error), error)
    if errors:
        raise together(list(errors.values()))
    return made

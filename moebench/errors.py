"""Errors that a user can cause or fix: one line that names key, value and remedy.

The command line prints the text of a `MoebenchError` after `error: ` and exits with its code. Any
other exception that escapes is a bug.
"""

import difflib
import signal
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

OUT_OF_MEMORY = "out of memory on "  # in the reason of a run that does not fit
CONTINUES = "--resume continues"  # how a run goes on; a sweep, which has no such option, just does

WITHOUT_MEMORY = (
    "allocate memory",  # of the system and of torch
    "failed to map segment",  # of the linker
    "could not create a primitive",  # of oneDNN, whose code for a product had no room
)

Item = TypeVar("Item")
Result = TypeVar("Result")


def lacks_memory(error: Exception) -> bool:
    """Whether an error says that there was too little memory; libraries have no type for it."""
    # oneDNN names a descriptor where it does not support a product
    words = str(error).replace("could not create a primitive descriptor", "")
    told = any(each in words for each in WITHOUT_MEMORY)
    return isinstance(error, MemoryError) or told


class MoebenchError(Exception):
    """Base class of all errors with a message for the user."""

    exit_code = 1

    @property
    def lines(self) -> tuple[str, ...]:
        """The message, one line per problem."""
        return (str(self),)


class ConfigError(MoebenchError):
    """A key, a value or a combination of them that cannot work."""

    exit_code = 2


class DataError(MoebenchError):
    """Data that is missing, empty, damaged or too small."""

    exit_code = 2


class RecordError(MoebenchError):
    """A run record that is missing, damaged or of another kind."""

    exit_code = 2


class LockedError(RecordError):
    """A run that another process is training."""


class TrainingError(MoebenchError):
    """A run that cannot continue: a loss that is not finite, or memory or disk that is full."""

    exit_code = 1


class Stopped(MoebenchError):  # noqa: N818, stopping is not an error
    """A run that a signal stopped after a checkpoint, and that `--resume` continues.

    The exit code is 130 for SIGINT, otherwise 75, which batch systems read as "try again".
    """

    def __init__(self, path: Path, step: int, number: int) -> None:
        super().__init__(
            f"{path}: stopped by {signal.Signals(number).name} at step {step}; {CONTINUES}"
        )
        self.exit_code = 130 if number == signal.SIGINT else 75


class Several(MoebenchError):  # noqa: N818, it is several errors
    """Several errors, raised as one. Its exit code is that of the first; so many are named."""

    most = 20

    def __init__(self, errors: Sequence[MoebenchError]) -> None:
        self._errors = tuple(errors)
        lines = tuple(dict.fromkeys(line for error in errors for line in error.lines))
        more = len(lines) - self.most
        self._lines = (*lines[: self.most], f"and {more} more like these") if more > 0 else lines
        self.exit_code = errors[0].exit_code
        super().__init__("\n".join(self._lines))

    @property
    def lines(self) -> tuple[str, ...]:
        return self._lines

    def __reduce__(self) -> tuple[Any, ...]:
        return Several, (self._errors,)  # it crosses processes, and is not made from its text


def combine(errors: Sequence[MoebenchError]) -> MoebenchError:
    """One error to raise for all of `errors`, of which there is at least one."""
    return Several(errors) if len(errors) > 1 else errors[0]


def apply_to_all(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Call `function` with each item, and raise all errors together, so all can be fixed at once.

    An error that several items share is raised once.
    """
    results: list[Result] = []
    errors: dict[str, MoebenchError] = {}
    for item in items:
        try:
            results.append(function(item))
        except MoebenchError as error:
            errors.setdefault(str(error), error)
    if errors:
        raise combine(list(errors.values()))
    return results


def nearest(word: str, known: Iterable[str]) -> list[str]:
    """The known words that are most like a mistyped one, the best first; at most three.

    Words with dots are compared by their last parts.
    """

    def likeness(other: str) -> float:
        pairs = [(word.split(".")[-1], other.split(".")[-1])]
        pairs += [(word, other)] if "." not in word else []  # a dot may be missing
        return max(difflib.SequenceMatcher(None, a.lower(), b.lower()).ratio() for a, b in pairs)

    ranked = sorted(dict.fromkeys(known), key=likeness, reverse=True)
    enough = max(0.6, likeness(ranked[0]) - 0.04) if ranked else 1.0
    return [other for other in ranked if likeness(other) >= enough][:3]


def remedy(word: str, known: Collection[str], otherwise: str = "") -> str:
    """What to do about a word that is not known.

    Args:
        known: the words that can be used.
        otherwise: what to say if none is like it, in place of listing them.
    """
    if near := nearest(word, known):
        return f"did you mean {' or '.join(near)}?"
    return otherwise or f"there are {', '.join(known) or 'none'}"

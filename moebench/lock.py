"""A lock: one process at a time trains a run, or searches; it is free when the process ends.

It is a lease, so machines that share the directory of the runs agree on it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moebench import lease
from moebench.errors import LockedError
from moebench.records import Record, cannot_write
from moebench.seals import refuse_link

ENDED = "its process ended without a message"


@contextmanager
def hold(record: Record, doing: str = "training it") -> Iterator[None]:
    """Keep other processes from training a run. The process that holds the lock may take it again.

    Args:
        doing: what the holder of the lock does, for errors.

    Raises:
        LockedError: if another process holds it.
        RecordError: if the directory of the runs cannot be written, or the run's own is a link.
    """
    path = _path(record)
    refuse_link(record.path)
    refuse_link(path.parent)
    held = lease.hold(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held.__enter__()
    except lease.TakenError as error:
        raise LockedError(
            f"{record.path}: another process is {doing} ({error}); wait for it"
        ) from None
    except OSError as error:
        raise cannot_write(record.path.parent, error) from None
    try:
        yield
    finally:
        held.__exit__(None, None, None)


def is_held(record: Record) -> bool:
    """Whether a process, possibly this one, holds a run's lock. Writes nothing."""
    return lease.is_held(_path(record))


def lives(record: Record) -> bool | None:
    """Whether the process that took a run's lock holds it still; None without a lock."""
    return lease.lives(_path(record))


def check_held(record: Record) -> None:
    """Raise LockedError if another process has taken over the lock that this process held."""
    own = lease.held_here(_path(record))
    if own is not None and own.lost:
        raise LockedError(
            f"{record.path}: another process has taken it over, since this one was silent for "
            f"{lease.LIFE:g} s; it was left to the other"
        )


def _path(record: Record) -> Path:
    return record.path.parent / ".locks" / f"{record.name}.lock"

"""A lock that lets one process at a time train a run; it is released when the process ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from moebench.errors import LockedError
from moebench.records import Record, cannot_write

TIMEOUT = 0.5  # seconds; longer than `is_held` of another process blocks the lock


@contextmanager
def hold(record: Record) -> Iterator[None]:
    """Keep other processes from training a run. The process that holds the lock may take it again.

    Raises:
        LockedError: if another process holds it.
        RecordError: if the directory of the runs cannot be written.
    """
    path = _path(record)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path, is_singleton=True)
        lock.acquire(timeout=TIMEOUT)
    except filelock.Timeout:
        raise LockedError(f"{record.path}: another process is training it; wait for it") from None
    except OSError as error:
        raise cannot_write(record.path.parent, error) from None
    try:
        yield
    finally:
        lock.release()


def is_held(record: Record) -> bool:
    """Whether a process, possibly this one, holds a run's lock. Writes nothing."""
    try:
        file = os.open(_path(record), os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(file)
    return False


def _path(record: Record) -> Path:
    return record.path.parent / ".locks" / f"{record.name}.lock"

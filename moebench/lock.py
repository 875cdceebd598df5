"""One process at a time trains a run: a lock beside the records, which dies with its process."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from moebench.errors import LockedError
from moebench.records import Record, cannot_write

MOMENT = 0.5  # seconds; longer than another's `is_held` stands in the way


@contextmanager
def hold(record: Record) -> Iterator[None]:
    """Keep all other processes from training a run; a process that holds it may hold it again.

    Raises:
        LockedError: if another process holds it.
        RecordError: if the directory of the runs cannot be written.
    """
    path = _path(record)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path, is_singleton=True)
        lock.acquire(timeout=MOMENT)
    except filelock.Timeout:
        raise LockedError(f"{record.path}: another process is training it; wait for it") from None
    except OSError as error:
        raise cannot_write(record.path.parent, error) from None
    try:
        yield
    finally:
        lock.release()


def is_held(record: Record) -> bool:
    """Whether a process, this one included, holds a run. Writes nothing."""
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

"""One process at a time writes a run: a lock beside the records, which dies with its process."""

from collections.abc import Iterator
from contextlib import contextmanager

import filelock

from moebench.errors import RecordError
from moebench.records import Record


@contextmanager
def hold(record: Record) -> Iterator[None]:
    """Keep all other processes from a run.

    Raises:
        RecordError: if another process is at it, or the directory of the runs cannot be written.
    """
    locks = record.path.parent / ".locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(locks / f"{record.name}.lock")
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise RecordError(f"{record.path}: another process is training it; wait for it") from None
    except OSError as error:
        raise RecordError(
            f"{record.path.parent}: cannot be written ({error.strerror}); "
            "name another directory with --runs-dir"
        ) from None
    try:
        yield
    finally:
        lock.release()

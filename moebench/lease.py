"""Leases: files by which processes of many machines agree who works on something.

The owner of a lease links its file to the name that all know, and touches it every BEAT seconds.
Every file system that machines share can do both. NFS may lack `flock`, or keep one after a machine
has died.

The lease of a dead process is taken over. On the owner's machine it is dead when its process is.
From another machine it is dead when its file was not touched for LIFE seconds; an owner that was
only asleep then finds that its lease is `lost`. Times are those of the file system, since clocks of
machines differ. Who removes a dead lease holds a lease for that, so that no living one is removed.
"""

import json
import math
import os
import secrets
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from moebench.disk import open_regular, parse_json

BEAT = 15.0  # seconds between two touches
LIFE = 90.0  # seconds; more than a beat and the 60 s for which NFS clients cache a file's times
WAIT = 0.1  # seconds between two attempts of a process that waits
MOST = 4096  # bytes of a lease that are read


class TakenError(Exception):
    """Another process holds the lease; the text says which one."""


class Lease:
    """A lease of this process, which may hold it several times.

    Attributes:
        lost: whether another process has taken it over.
    """

    def __init__(self, path: Path, file: int) -> None:
        self._path, self._file = path, file
        self._inode = os.fstat(file).st_ino
        self.times = 0
        self.lost = False

    def beat(self) -> None:
        """Touch the file, unless another one has replaced it."""
        with suppress(OSError):  # a file system that cannot be reached may come back
            self.lost = os.stat(self._path).st_ino != self._inode
            if not self.lost:
                os.utime(self._file)

    def release(self) -> None:
        with suppress(OSError):
            if os.stat(self._path).st_ino == self._inode:
                self._path.unlink()
        with suppress(OSError):
            os.close(self._file)


class Owner(NamedTuple):
    """Who holds a lease, as its file says, and when it was last touched (epoch seconds)."""

    machine: str
    host: str
    pid: int
    start: int | None
    touched: float

    def lives(self, now: float) -> bool:
        """Whether the owner still runs, as far as this machine can tell."""
        if self.machine == this_machine():
            return _is_running(self.pid, self.start)
        return abs(now - self.touched) < LIFE  # a time to come is one that somebody set


_held: dict[tuple[int, str], Lease] = {}  # by process and path: a forked process holds none
_guard = threading.Lock()


@contextmanager
def hold(path: Path, *, wait: bool = False) -> Iterator[Lease]:
    """Hold the lease at `path`, in an existing folder. A process that holds it may hold it again.

    Args:
        wait: until no other process holds it.

    Raises:
        TakenError: if another process holds it.
        OSError: if its file cannot be written.
    """
    key = os.getpid(), os.path.abspath(path)
    while True:
        try:
            with _guard:
                lease = _held.get(key) or _held.setdefault(key, Lease(path, _create(path)))
                lease.times += 1
            break
        except TakenError:
            if not wait:
                raise
        time.sleep(WAIT)
    _start_beating()
    try:
        yield lease
    finally:
        with _guard:
            lease.times -= 1
            if not lease.times:
                _held.pop(key, None)
                lease.release()


def is_held(path: Path) -> bool:
    """Whether a process, possibly this one, holds the lease at `path`; see `lives`."""
    return bool(lives(path))


def lives(path: Path) -> bool | None:
    """Whether the process that took the lease at `path` holds it still; None without a lease.

    Writes nothing, but that it asks for the time of a file system that another machine writes to;
    see `_time_there`.
    """
    owner = _owner(path)
    if owner is None:
        return None
    # a process of this machine is looked up, so that the time does not matter
    return owner.lives(0.0 if owner.machine == this_machine() else _time_there(path))


def held_here(path: Path) -> Lease | None:
    """The lease at `path` if this process holds it."""
    return _held.get((os.getpid(), os.path.abspath(path)))


@cache
def this_machine() -> str:
    """What tells this machine, and the numbers of its processes, from all others."""
    boot, numbers = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    with suppress(OSError):
        return f"{socket.gethostname()} {boot.read_text().strip()} {numbers.readlink()}"
    return socket.gethostname()


def _create(path: Path) -> int:
    """The open file of a new lease. The lease of a dead process is removed before."""
    owner = _owner(path)
    if owner is not None:
        # the clock of the file system is the only one that all machines share
        if owner.lives(_clock_of(path)):
            raise TakenError(f"process {owner.pid} on {owner.host}")
        _remove(path, owner)
    own = {"machine": this_machine(), "host": socket.gethostname(), "pid": os.getpid()}
    # written aside, so that nothing finds a lease that does not say whose it is
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    file = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.write(file, json.dumps({**own, "start": _start_of(os.getpid())}).encode())
        os.fsync(file)
        _link(file, aside, path)
    except BaseException:
        os.close(file)
        raise
    finally:
        aside.unlink()
    return file


def _link(file: int, aside: Path, path: Path) -> None:
    """Link an open file that lies `aside` to `path`. Raises TakenError if another file is there."""
    try:
        os.link(aside, path)
    except FileExistsError:
        # NFS says so, too, if it has made the link, lost its answer and was asked again
        with suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(file).st_ino:
                return
        raise TakenError("a process that was quicker") from None


def _owner(path: Path) -> Owner | None:
    """The owner that a lease names; None without a lease.

    A file that cannot be read is nobody's, and believed while it is new; a pipe or a link is dead.
    """
    content: dict[str, Any] = {}
    touched = -math.inf
    try:
        status = os.lstat(path)
        if stat.S_ISREG(status.st_mode):
            touched = status.st_mtime
            with open_regular(path) as file:  # to open it makes an NFS client ask for its times
                touched = os.fstat(file.fileno()).st_mtime
                content = parse_json(file.read(MOST))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        pass
    pid, start = content.get("pid"), content.get("start")
    return Owner(
        machine=str(content.get("machine", "")),
        host=str(content.get("host", "an unknown machine")),
        pid=pid if type(pid) is int and pid > 0 else 0,
        start=start if type(start) is int else None,
        touched=touched,
    )


def _remove(path: Path, dead: Owner) -> None:
    """Remove the lease of a dead process, unless a quicker process has.

    Only who holds the lease `.NAME.removal` removes. If that process dies as well, its lease is
    removed in the same way.

    Raises TakenError if another process is removing it.
    """
    removal = path.with_name(f".{path.name}.removal")
    file = _create(removal)
    try:
        if _owner(path) == dead:
            path.unlink()
    finally:
        removal.unlink(missing_ok=True)
        os.close(file)


def _clock_of(path: Path) -> float:
    """The time by the clock of the file system, from a file that is made there and removed."""
    probe = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    file = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        return os.fstat(file).st_mtime
    finally:
        os.close(file)
        probe.unlink()


_ahead: dict[Path, tuple[float, float]] = {}  # by folder: when it was asked, and the seconds


def _time_there(path: Path) -> float:
    """The time by the clock of the file system, which is asked every LIFE seconds.

    By this machine's clock where that cannot be written.
    """
    asked, ahead = _ahead.get(path.parent, (float("-inf"), 0.0))
    if time.monotonic() - asked > LIFE:
        with suppress(OSError):
            ahead = _clock_of(path) - time.time()
        _ahead[path.parent] = time.monotonic(), ahead
    return time.time() + ahead


def _is_running(pid: int, start: int | None) -> bool:
    """Whether a process exists, is no zombie, and is the one that began at `start`."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's
    fields = _stat(pid)
    return not fields or (fields[0] not in ("Z", "X") and start in (None, int(fields[19])))


def _start_of(pid: int) -> int | None:
    """When a process began, in ticks since its machine did; None where that is not to be had."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; none if it cannot be read."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


_beating: dict[int, threading.Thread] = {}  # by process, since threads do not survive a fork


def _start_beating() -> None:
    """Start this process's thread that touches its leases, unless it runs."""
    with _guard:
        thread = _beating.get(os.getpid())
        if thread is None or not thread.is_alive():
            thread = threading.Thread(target=_beat, name="leases", daemon=True)
            _beating[os.getpid()] = thread
            thread.start()


def _beat() -> None:
    """Touch the leases of this process as long as it has any."""
    while True:
        time.sleep(BEAT)
        with _guard:
            own = [lease for (pid, _), lease in _held.items() if pid == os.getpid()]
            if not own:
                _beating.pop(os.getpid(), None)
                return
        for lease in own:
            lease.beat()

"""This process on its machine: how it waits, what it imports, and which cores limit it."""

import ctypes
import gc
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
CPUS = Path("/proc/cpuinfo")
OWN_CGROUPS = Path("/proc/self/cgroup")

# Threads that have nothing to do spin for some 20 microseconds, about as long as waking up takes on
# a virtual machine, and then sleep. By default they spin for milliseconds, and on a busy machine
# keep the threads that work from the cores. LLVM's OpenMP counts in milliseconds.
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}

# Options of glibc's mallopt: never map a block apart, never give memory back, and ask for 64 MiB.
KEEPING = {-4: 0, -1: 2**31 - 1, -2: 2**26}


def begin_process() -> None:
    """Set this process up, before it imports torch; for commands, not for a library's user.

    Idle threads soon sleep, and freed memory is kept, unless the user's environment says otherwise.
    `python -m` looks for modules in the working directory first, where other things may have their
    names.
    """
    if not WAITING.keys() & os.environ.keys():
        os.environ.update(WAITING)
    if not any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        keep_freed_memory()
    own = str(Path(__file__).parents[1])
    if sys.argv[:1] == ["-m"] and sys.path[:1] == [here := os.getcwd()]:
        sys.path.pop(0)
        if own == here:  # a checkout that is not installed
            sys.path.append(here)


def keep_freed_memory() -> None:
    """Let glibc keep memory that is freed: the next step asks for as much again.

    Otherwise the system fills each page of it with zeros once more, a tenth of a small step's time.
    Elsewhere, and with another allocator, it changes nothing.
    """
    with suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        for option, value in KEEPING.items():
            library.mallopt(option, value)


@contextmanager
def importing() -> Iterator[None]:
    """Import modules without looking for garbage, of which they leave next to none.

    The collector would visit all that torch makes several times, a fifth of the import's time. What
    exists at the end is not visited later either.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def usable_cores() -> int:
    """Cores whose time this process gets, at least 1: by its affinity and its control groups."""
    limit = cpu_limit()
    return allowed_cores() if limit is None else max(1, min(allowed_cores(), int(limit)))


def allowed_cores() -> int:
    """Cores that this process may run on, without regard to control groups."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def cpu_limit() -> float | None:
    """Cores whose time the control groups of this process allow; None without a limit."""
    limits = []
    for group in control_groups("cpu"):
        one, two = (words(group / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        limit = words(group / "cpu.max") or one + two
        # no limit is "max" in version 2 and -1 in version 1
        if len(limit) == 2 and all(map(str.isdigit, limit)):
            limits.append(int(limit[0]) / int(limit[1]))
    return min(limits, default=None)


def control_groups(controller: str) -> Iterator[Path]:
    """The control groups of this process and their parents, of versions 1 and 2.

    In a container, a group's path may exist only on the host; its parents can still be read.
    """
    for line in lines(OWN_CGROUPS):
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = CGROUPS / controller if controllers else CGROUPS
        group = root / path.strip("/")
        yield from (path for path in (group, *group.parents) if path.is_relative_to(root))


def processor() -> str:
    """The model of the CPU, as Linux names it."""
    models = [line.partition(":")[2] for line in lines(CPUS) if line.startswith("model name")]
    return models[0].strip() if models else platform.machine()


def lines(path: Path) -> list[str]:
    """The lines of a file; none if it cannot be read."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def words(path: Path) -> list[str]:
    """The words of a file; none if it cannot be read."""
    return " ".join(lines(path)).split()

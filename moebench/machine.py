"""What of this machine the process may use: cores, and the control groups that limit it."""

import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Cores that this process gets, at least 1: those it may run on, within its control groups."""
    limit = cpu_limit()
    return allowed_cores() if limit is None else max(1, min(allowed_cores(), int(limit)))


def allowed_cores() -> int:
    """Cores that this process may run on, however little of their time it is given."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def cpu_limit() -> float | None:
    """Cores whose time the control groups of this process allow; None without a limit."""
    limits = []
    for group in control_groups("cpu"):
        one, two = (words(group / f"cpu.cfs_{each}_us") for each in ("quota", "period"))
        limit = words(group / "cpu.max") or one + two
        # no limit is "max" in version 2 and -1 in version 1
        if len(limit) == 2 and all(map(str.isdigit, limit)):
            limits.append(int(limit[0]) / int(limit[1]))
    return min(limits, default=None)


def control_groups(controller: str) -> Iterator[Path]:
    """The control groups of this process and all above them, of versions 1 and 2.

    A container may be told a path that only its host has; what is above it is there all the same.
    """
    for line in lines(OWN_CGROUPS):
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = CGROUPS / controller if controllers else CGROUPS
        group = root / path.strip("/")
        yield from (each for each in (group, *group.parents) if each.is_relative_to(root))


def lines(path: Path) -> list[str]:
    """The lines of a file; none if it is not there or not for us."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def words(path: Path) -> list[str]:
    """The words of a file; none if it is not there or not for us."""
    return " ".join(lines(path)).split()

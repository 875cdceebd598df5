"""Cores, memory, disks, versions, a compiler, a child process and what launches a sweep's jobs."""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from moebench.doctor.finding import GIB, PIP, PYTHON, Finding, brief
from moebench.machine import allowed_cores, control_groups, cpu_limit, usable_cores, words

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

LITTLE = 2 * GIB  # of memory or disk; less is worth a note
PATIENCE = 60  # seconds that a child process may take

COMPILER = "for it, install a C++ compiler: apt install g++ python3-dev on Debian and Ubuntu"
CHILD = "import moebench.study"  # what each job of a sweep begins with
CHILD_ALONE = f"see why: {PYTHON} -c {shlex.quote(CHILD)}"
OTHER_RUNS = "name another folder with --runs-dir"
OTHER_CACHE = "name another folder in the environment variable MOEBENCH_CACHE"
LAUNCHERS = ("submitit", "ray")  # of a sweep; each needs the distribution of that name


def cores() -> Iterator[Finding]:
    cores, limit = allowed_cores(), cpu_limit()
    value = f"{cores} of {os.cpu_count()}"
    if limit is not None and limit < cores:
        value += (
            f"; a control group allows the time of {limit:g}, so moebench uses {usable_cores()}"
        )
    yield Finding("cores", value)


def memory() -> Iterator[Finding]:
    sizes = dict(re.findall(r"(\w+): +(\d+) kB", Path("/proc/meminfo").read_text()))
    total, free = (int(sizes[key]) * 1024 for key in ("MemTotal", "MemAvailable"))
    for group in control_groups("memory"):
        limit = words(group / "memory.max") or words(group / "memory.limit_in_bytes")
        if limit and limit[0].isdigit() and int(limit[0]) < total:
            total = int(limit[0])
            free = min(free, total - _memory_in_use(group))
    value = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if free >= LITTLE:
        yield Finding("memory", value)
        return
    less = "close other programs; set run.device_bsz to a small divisor of global_bsz"
    yield Finding("memory", value, "note", f"{less}; give a sweep --jobs 1")


def _memory_in_use(group: Path) -> int:
    """Bytes, without the file cache, which gives way when memory is needed."""
    used = words(group / "memory.current") or words(group / "memory.usage_in_bytes")
    stat = words(group / "memory.stat")
    known = dict(zip(stat[::2], stat[1::2], strict=False))
    cached = known.get("total_inactive_file") or known.get("inactive_file") or 0
    return int(used[0]) - int(cached)


def folder(name: str, path: Path, elsewhere: str) -> Iterator[Finding]:
    """Whether a folder, or the nearest above it that is there, can be written, and its disk."""
    absolute = path.absolute()
    there = next(path for path in (absolute, *absolute.parents) if os.path.exists(path))
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(4096))
            file.flush()
        free = shutil.disk_usage(there).free
    except OSError as error:
        value = f"{path}: cannot be written ({error.strerror})"
        yield Finding(name, value, "problem", elsewhere)
        return
    value = f"{path}: can be written, {free / GIB:.1f} GiB free"
    if free >= LITTLE:
        yield Finding(name, value)
    else:
        yield Finding(name, value, "note", f"free some space, or {elsewhere}")


def data_cache() -> Iterator[Finding]:
    from moebench.disk import cache_root

    yield from folder("data cache", cache_root(), OTHER_CACHE)


def versions() -> Iterator[Finding]:
    """moebench, Python and all that moebench needs, held against its own metadata."""
    import moebench

    yield Finding("moebench", moebench.__version__)
    try:
        about = metadata.metadata("moebench")
    except metadata.PackageNotFoundError:
        value = "not known, because moebench is not installed"
        yield Finding("versions", value, "note", f"in the folder of moebench: {PIP} --editable .")
        return
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    needed = SpecifierSet(about["Requires-Python"] or "")
    remedy = f"install a Python {needed}, and moebench with it"
    yield _held("python", platform.python_version(), needed, remedy)
    for requirement in map(Requirement, metadata.requires("moebench") or ()):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        remedy = f"{PIP} {shlex.quote(str(requirement))}"
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Finding(requirement.name, "is not installed", "problem", remedy)
        else:
            yield _held(requirement.name, version, requirement.specifier, remedy)


def _held(name: str, version: str, needed: "SpecifierSet", remedy: str) -> Finding:
    if needed.contains(version, prereleases=True):
        return Finding(name, version)
    return Finding(name, f"{version}, but moebench needs {needed}", "problem", remedy)


# Other processes


def compiler() -> Iterator[Finding]:
    """What torch.compile needs; a compilation itself would take a minute."""
    command = shlex.split(os.environ.get("CXX", "g++"))
    include = sysconfig.get_path("include")
    done = subprocess.run(
        [*command, "-x", "c++", "-fsyntax-only", f"-I{include}", "-"],
        input="#include <Python.h>\n#include <vector>\n",
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    if done.returncode == 0:
        yield Finding("torch.compile", f"not tried, but {shutil.which(command[0])} works")
    else:
        value = f"{shlex.join(command)} does not work: {brief(done.stderr)}"
        yield Finding("torch.compile", value, "note", COMPILER)


def child() -> Iterator[Finding]:
    """Whether a sweep can start its jobs: a process as `study.engines.local` starts them."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        start_new_session=True,
    )
    if done.returncode == 0:
        yield Finding("child process", f"starts in {time.perf_counter() - began:.1f} s")
    else:
        why = done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"
        yield Finding("child process", f"does not start: {brief(why)}", "problem", CHILD_ALONE)


def launchers(works: bool) -> Iterator[Finding]:
    """What can start the jobs of a sweep.

    Args:
        works: whether a child process starts, which is all that `local` needs.
    """
    versions: list[str] = []
    for name in LAUNCHERS:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            versions.append(f"{name} not installed")
    others = f"commands works; {', '.join(versions)}"
    if works:
        yield Finding("launchers", f"local works; {others}")
    else:
        value = f"local does not work, for want of a child process; {others}"
        yield Finding("launchers", value, "problem", f"fix the child process; {CHILD_ALONE}")

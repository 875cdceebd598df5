"""What jobs and their sweep ask of a processor and of a shared file system, counted here.

A file operation is a call that a network file system answers: open, stat, rename, fsync and the
like. Times are process time, because other programs may run.
"""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, TypeVar

from moebench.config.compose import Composer
from moebench.lock import hold, is_held
from moebench.plans import Plan, read_plan
from moebench.records import Record
from moebench.study import make_plan
from moebench.study.status import last_status

ON_FILES = {
    *("open", "open_code", "stat", "lstat", "replace", "rename", "unlink", "mkdir", "rmdir"),
    *("scandir", "listdir", "utime", "fsync", "access", "readlink", "link", "create_dynamic"),
}
MODULES = {"posix", "io", "_io", "_imp"}
IMPORTS = "import moebench.experiment, moebench.study.worker"
Made = TypeVar("Made")
RUNS = 400  # of the grid that is planned


class Planning(NamedTuple):
    """Process seconds and bytes of a run of a plan; `fixed` seconds do not depend on the runs."""

    fixed: float
    compose: float
    write: float
    read: float
    bytes: float


class Operations(NamedTuple):
    """File operations.

    Attributes:
        start: of a process until it has imported what a job needs.
        lock: to hold a run and to let it go.
        status: of an update of a run's status.
        poll: to look at a run that trains.
        look: to see whether a run is done, and whether a job of submitit has ended.
    """

    start: int
    lock: int
    status: int
    poll: int
    look: int


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count the file operations of this thread."""
    counts: Counter[str] = Counter()

    def profile(_frame: object, event: str, function: object) -> None:
        if event == "c_call" and getattr(function, "__module__", "") in MODULES:
            name = getattr(function, "__name__", "")
            counts[name] += name in ON_FILES

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield counts
    finally:
        sys.setprofile(before)


def planning(runs: int = RUNS) -> Planning:
    """Plan a grid of so many arms, and one of few; write and read it."""
    few = _planned(2)[0]
    seconds, plan = _planned(runs)
    with TemporaryDirectory() as folder:
        write, path = _timed(lambda: plan.write(Path(folder)))
        read, _ = _timed(lambda: read_plan(path))
        size = path.stat().st_size
    return Planning(few, (seconds - few) / (runs - 2), write / runs, read / runs, size / runs)


def operations() -> Operations:
    """Count them on a record in a temporary folder, and in a process that imports."""
    code = _PROFILE + f"{IMPORTS}\nsys.setprofile(None)\nprint(seen)"
    start = int(subprocess.check_output([sys.executable, "-c", code], text=True))
    with TemporaryDirectory() as folder:
        record = Record(Path(folder) / "micro-s0-0123456789")
        record.begin("a: 1", {})
        status = {"step": 10, "steps": 100, "seconds": 1.0}
        record.set_status("running", **status)
        with counted() as updates:
            record.set_status("running", **status)
        with counted() as locks, hold(record):
            pass
        with hold(record), counted() as polls:
            last_status(record)
            is_held(record)
        with counted() as looks:
            record.is_done()
            (record.path / "result.pkl").exists()
    return Operations(start, *(c.total() for c in (locks, updates, polls, looks)))


def start_seconds() -> float:
    """Process seconds of a cold start: Python, and the imports of a job."""
    code = f"{IMPORTS}\nimport time; print(time.process_time())"
    return float(subprocess.check_output([sys.executable, "-c", code], text=True))


def _planned(arms: int) -> tuple[float, Plan]:
    words = ["model=small", f"loss.balance={','.join(f'{1e-3 * (n + 1):g}' for n in range(arms))}"]
    composer = Composer()
    return _timed(lambda: make_plan(composer, words))


def _timed(act: Callable[[], Made]) -> tuple[float, Made]:
    began = time.process_time()
    made = act()
    return time.process_time() - began, made


# In a process of its own, which has imported nothing before.
_PROFILE = f"""
import sys
seen = 0
NAMES, MODULES = {ON_FILES!r}, {MODULES!r}
def profile(frame, event, function):
    global seen
    if event == "c_call" and getattr(function, "__module__", "") in MODULES:
        seen += getattr(function, "__name__", "") in NAMES
sys.setprofile(profile)
"""

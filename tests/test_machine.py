"""The cores that a process gets, by system and control groups."""

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moebench.machine import WAITING, allowed_cores, begin_process, cpu_limit, usable_cores

Groups = Callable[[str, dict[str, str]], None]


@pytest.mark.parametrize(
    ("membership", "files", "limit"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"a/cpu.max": "50000 100000", "a/b/cpu.max": "200000 100000"}, 0.5),
        ("0::/only/on/the/host\n", {"cpu.max": "200000 100000\n"}, 2.0),
        (
            "3:cpu,cpuacct:/a\n",
            {"cpu/a/cpu.cfs_quota_us": "75000", "cpu/a/cpu.cfs_period_us": "50000"},
            1.5,
        ),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("3:cpuset:/\n", {"cpu.max": "150000 100000\n"}, None),
    ],
)
def test_the_limit_of_the_control_groups(
    groups: Groups, membership: str, files: dict[str, str], limit: float | None
) -> None:
    groups(membership, files)
    assert cpu_limit() == limit


@pytest.mark.parametrize(
    ("limit", "cores"),
    [("max", 8), ("1600000", 8), ("390000", 3), ("100000", 1), ("90000", 1)],
)
def test_a_limit_is_kept_in_whole_cores(
    groups: Groups, monkeypatch: pytest.MonkeyPatch, limit: str, cores: int
) -> None:
    monkeypatch.setattr("moebench.machine.allowed_cores", lambda: 8)
    groups("0::/\n", {"cpu.max": f"{limit} 100000"})
    assert usable_cores() == cores


def test_a_system_that_pins_no_process_has_all_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= allowed_cores() <= (os.cpu_count() or 1)
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    assert allowed_cores() == os.cpu_count()
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert allowed_cores() == 1


ALLOCATING = """
import resource
from moebench.machine import begin_process
begin_process()
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytes(2**26 + 1).count(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
@pytest.mark.parametrize("typed", [{}, {"MALLOC_ARENA_MAX": "2"}])
def test_freed_memory_is_kept_unless_the_user_says_otherwise(typed: dict[str, str]) -> None:
    """Whether memory that was freed is filled with zeros again, page by page."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    words = [sys.executable, "-c", ALLOCATING]
    child = subprocess.run(words, env=env | typed, capture_output=True, text=True, check=True)
    pages = 2**26 / os.sysconf("SC_PAGE_SIZE")
    assert (int(child.stdout) > pages / 2) == bool(typed)


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process of the tests stays as it is."""
    monkeypatch.setattr("moebench.machine.keep_freed_memory", lambda: None)


@pytest.mark.parametrize("typed", [None, *WAITING])
def test_idle_threads_sleep_unless_the_user_says_how_they_wait(
    monkeypatch: pytest.MonkeyPatch, typed: str | None
) -> None:
    for name in WAITING:
        monkeypatch.delenv(name, raising=False)
    if typed is not None:
        monkeypatch.setenv(typed, "mine")
    begin_process()
    found = {name: os.environ[name] for name in WAITING if name in os.environ}
    assert found == (WAITING if typed is None else {typed: "mine"})


def test_a_module_of_the_working_directory_shadows_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = str(Path(__file__).parents[1])
    for folder, argument, expected in (
        (str(tmp_path), "-m", ["rest"]),
        (own, "-m", ["rest", own]),  # moebench itself lies there
        (str(tmp_path), "script.py", [str(tmp_path), "rest"]),
    ):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", [argument])
        monkeypatch.setattr(sys, "path", [folder, "rest"])
        begin_process()
        assert sys.path == expected

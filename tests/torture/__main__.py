"""Tortures moebench, and keeps count: `python -m tests.torture [TOPIC ...]`.

The long form makes every attempt that was not made before, and can be interrupted. Results go to
`runs/torture/`, and their numbers to `docs/reliability.json`, from which the page is made.
"""

import argparse
import importlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version
from multiprocessing.util import get_temp_dir
from pathlib import Path

from tests.torture import disk
from tests.torture.topic import Results, Topic, Untried, make_attempt, remaining

ROOT = Path(__file__).parents[2]
TOPICS = (
    *("resume", "atomic_save", "power_loss", "full_disk", "preemption", "non_finite"),
    *("memory", "determinism", "concurrency", "versions"),
    *("corruption", "provenance", "input", "network"),
)
FAST = Path("/dev/shm")  # a disk in memory, which syncs at once


def topic_of(name: str) -> Topic:
    """The topic of a module in this folder."""
    return importlib.import_module(f"tests.torture.{name}").TOPIC


def main(arguments: Sequence[str] | None = None) -> int:
    """Torture, and return 1 if a promise was broken."""
    typed = _parser().parse_args(arguments)
    if unknown := {*typed.topics} - {*TOPICS}:
        sys.exit(f"error: {', '.join(unknown)}: there are {', '.join(TOPICS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))  # and remove the room
    with suppress(Untried):
        disk.preload()
    from tests.processes import choose_preloaded

    choose_preloaded("tests.torture.preloaded")
    failed = 0
    with _room(typed.room) as room:
        for name in typed.topics or TOPICS:
            failed += _torture(topic_of(name), room, typed.results / f"{name}.jsonl", typed.short)
    if typed.numbers:
        _write_numbers(typed.results, typed.numbers)
    return failed > 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("topics", nargs="*", metavar="topic", help="all, by default")
    parser.add_argument("--short", action="store_true", help="a few attempts of each, as in CI")
    parser.add_argument("--results", type=Path, default=ROOT / "runs" / "torture")
    parser.add_argument("--numbers", type=Path, help="file for the numbers of all topics")
    parser.add_argument("--room", type=Path, help="folder for the attempts; by default in memory")
    return parser


@contextmanager
def _room(given: Path | None) -> Iterator[Path]:
    """A folder for attempts, with the text and the cache of their runs."""
    from tests.torture.runs import make_text

    where = given or (FAST if FAST.is_dir() else None)
    with tempfile.TemporaryDirectory(prefix="torture", dir=where) as made:
        room = Path(made)
        make_text(room / "text")
        os.environ["TORTURE_ROOM"] = made
        os.environ["TORTURE_TEXT"] = str(room / "text")
        os.environ["MOEBENCH_CACHE"] = str(room / "cache")
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
        get_temp_dir()  # of this process, which it removes itself at its end
        tempfile.tempdir = made
        try:
            yield room
        finally:
            tempfile.tempdir = None


def _torture(topic: Topic, room: Path, file: Path, short: bool) -> int:
    """Make the remaining attempts of a topic, and return how many failed."""
    results, failed = Results(file), 0
    for name in remaining(topic, results, short=short):
        folder = room / "attempt"
        folder.mkdir()
        result = {**make_attempt(topic, name, folder), "with": _versions(), "time": time.time()}
        results.add(result)
        failed += "failed" in result
        said = result.get("failed") or result.get("untried") or result["counts"]
        state = next((word for word in ("failed", "untried") if word in result), "held")
        print(f"{topic.name}: {name}: {state}: {said} ({result['seconds']} s)", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
    return failed


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("moebench", "torch", "numpy", "safetensors")},
        "commit": _commit(),
    }


@cache
def _commit() -> str:
    """Of the tree that is tortured; "" where git does not know it."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def _write_numbers(results: Path, file: Path) -> None:
    """Write the numbers of all topics that were tried, for the page."""
    made = {}
    for name in TOPICS:
        if (results / f"{name}.jsonl").exists():
            topic = topic_of(name)
            made[topic.name] = Results(results / f"{name}.jsonl").summary(topic)
    content = {"topics": made, "with": _versions(), "machine": f"{os.cpu_count()} cores"}
    file.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())

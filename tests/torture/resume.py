"""SIGKILL at random moments: a run that continues ends as one that was never interrupted."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.processes import Process, until
from tests.torture.runs import KINDS, STEPS, assert_same, draw, finish, reference, start
from tests.torture.topic import DEADLINE, Counts, Topic

KILLS = 4  # in an attempt
ATTEMPTS = 7  # of each kind
AIM = 0.004  # seconds within which an aimed kill follows the begin of a save
STEP = 0.1  # seconds within which another one follows a row


def attempts() -> list[str]:
    """Kinds in turn, so that a short form has all of them."""
    return [f"{kind} {number}" for number in range(ATTEMPTS) for kind in KINDS]


def attempt(name: str, folder: Path) -> Counts:
    """Kill a run several times, in a save or after any row, and let it end."""
    kind = name.split()[0]
    reference(kind)
    chance, counts, runs_dir = draw(name), Counter[str](), folder / "runs"
    for number in range(KILLS):
        processes = start(kind, runs_dir)
        if number % 2:
            _wait(lambda: _in_save(runs_dir), processes)
            time.sleep(chance.uniform(0, AIM))
        else:
            last = chance.randint(min(_rows(runs_dir), STEPS), STEPS)
            _wait(lambda last=last: _rows(runs_dir) >= last, processes)
            time.sleep(chance.uniform(0, STEP))
        victims = processes if chance.random() < 0.5 else [chance.choice(processes)]
        ended = [process for process in processes if process.poll() is not None]
        for process in victims:
            process.kill()
        _end_others(processes)
        if ended:
            continue
        counts["SIGKILLs"] += 1
        counts["inside a save"] += _in_save(runs_dir)
    finish(kind, runs_dir)
    assert_same(kind, runs_dir)
    return counts


def _end_others(processes: list[Process]) -> None:
    """Wait until a rank whose peer was killed ends by itself, or kill it, as torchrun does."""
    with contextlib.suppress(AssertionError):
        until(lambda: all(each.poll() is not None for each in processes), 20)
    for process in processes:
        process.kill()
        process.communicate(DEADLINE)


def _wait(condition: Callable[[], bool], processes: list[Process]) -> None:
    """Wait until a condition holds, or a process has ended."""
    until(
        lambda: condition() or any(each.poll() is not None for each in processes), DEADLINE, 0.001
    )


def _rows(runs_dir: Path) -> int:
    """The rows of the first run."""
    files = sorted(runs_dir.glob("*/metrics.jsonl"))
    return files[0].read_bytes().count(b"\n") if files else 0


def _in_save(runs_dir: Path) -> bool:
    """Whether a checkpoint is half written, or an old one is still to be removed."""
    for checkpoints in runs_dir.glob("*/checkpoints"):
        names = [path.name for path in checkpoints.iterdir()]
        if len(names) > 2 or any(name.startswith(".") for name in names):
            return True
    return False


TOPIC = Topic(
    "resume",
    "A run that SIGKILL ended continues, and its weights, optimizer and balance state, rows, "
    "routing and TensorBoard points are those of a run that was never interrupted, bit for bit.",
    attempts,
    attempt,
    short=("micro 0", "bias 0", "quantile 1", "stack 1", "ranks 1"),
)

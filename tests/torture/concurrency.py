"""Many processes sweep one study at once; in half of the attempts, some of them are killed."""

import signal
import time
from pathlib import Path

from moebench.disk import read_json
from tests.processes import moebench
from tests.torture.commands import ARMS, WORDS, said
from tests.torture.runs import draw, found, records, reference, words
from tests.torture.topic import DEADLINE, Counts, Topic

PROCESSES = 16
ATTEMPTS = 100
KILLED = 5  # of the processes, in every second attempt


def attempts() -> list[str]:
    return [f"{number}, {PROCESSES} processes" for number in range(ATTEMPTS)]


def attempt(name: str, folder: Path) -> Counts:
    """Each run is trained once, whole; every process that lives sees the study end."""
    number, processes = map(int, name.removesuffix(" processes").split(", "))
    chance = draw(f"concurrency {number}")
    typed = ("sweep", *words(*WORDS, ARMS), "--jobs", "1")
    sweeps = [moebench(*typed, cwd=folder) for _ in range(processes)]
    victims = chance.sample(sweeps, min(KILLED, processes // 2)) if number % 2 else []
    for victim in victims:
        time.sleep(chance.uniform(0, 0.5))
        victim.send_signal(signal.SIGKILL)
    for sweep in sweeps:
        out, errors = sweep.communicate(DEADLINE)
        said(errors)
        alive = sweep not in victims or sweep.returncode != -signal.SIGKILL
        assert not alive or sweep.returncode == 0, f"exit code {sweep.returncode}: {errors or out}"
    ended = found(folder / "runs")
    wanted = {**reference("global", *WORDS), **reference("micro", *WORDS)}
    assert ended == wanted, f"{sorted(ended)} differ from runs that were alone"
    if not victims:
        for record in records(folder / "runs"):
            resumed = read_json(record.path / "manifest.json").get("resumed", [])
            assert not resumed, f"{record.name} was trained by several processes"
    left = [str(path) for path in folder.glob("runs/**/.*.tmp")]
    assert not left, f"left over: {left}"
    return {"processes": processes, "killed": len(victims)}


TOPIC = Topic(
    "concurrency",
    "Sixteen processes on one study train each run once; where some are killed, the others finish "
    "the study, and its runs are those of one process.",
    attempts,
    attempt,
    short=("0, 6 processes", "1, 6 processes"),
)

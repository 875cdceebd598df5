"""The duration of commands that do not train, as complete processes, and of the start of a run.

The commands take turns, so that a slowdown of the machine affects all of them. `nothing` is Python
itself, and `import torch` the lower bound of a run. A run is watched until it has evaluated the
untrained model, when its first step begins. The data is a folder of random letters, prepared in
advance.

    python benchmarks/startup.py [--rounds N] [--arms N]
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tables import at_least_one

MOEBENCH = ("-m", "moebench.cli")
COMPLETION = {
    "_MOEBENCH_COMPLETE": "complete_fish",
    "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    "_TYPER_COMPLETE_ARGS": "moebench train scope=",
}


class Command(NamedTuple):
    """A process: Python with these arguments; its output must contain `says`.

    With `until`, the time ends when a line on stderr contains it.
    """

    name: str
    words: tuple[str, ...]
    says: str
    env: dict[str, str] | None = None
    until: str = ""

    def seconds(self, env: dict[str, str], place: Path) -> float:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *self.words],
            env={**env, **(self.env or {})},
            cwd=place,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        until = began
        if self.until and any(self.until in line for line in process.stderr):
            until = time.perf_counter()
        output, errors = process.communicate()
        took = (until if self.until else time.perf_counter()) - began
        if process.returncode != 0 or self.says not in output or took <= 0:
            raise SystemExit(f"{self.name}: exit code {process.returncode}\n{errors}")
        return took


def commands(number: int) -> list[Command]:
    data = ("data=folder", "data.path=text", "data.valid_sequences=1", "train.steps=1")
    arms = (f"loss.balance=range(0,{number})", "scope=micro", *data)
    train = ("train", "--force", "model=smoke", "run.device=cpu", *data)
    return [
        Command("nothing", ("-c", "pass"), ""),
        Command("import torch", ("-c", "import torch"), ""),
        Command("train, to its first step", (*MOEBENCH, *train), "runs/", until="step 0/1"),
        Command("--version", (*MOEBENCH, "--version"), "moebench "),
        Command("--help", (*MOEBENCH, "--help"), "train"),
        Command("completion of scope=", MOEBENCH, "scope=global", COMPLETION),
        Command("train --print-config", (*MOEBENCH, "train", "--print-config"), "scope: global"),
        Command(
            f"sweep --dry-run, {number:,} arms",
            (*MOEBENCH, "sweep", "--dry-run", "--json", *arms),
            '"study"',
        ),
        Command("sweep --status, 9 runs", (*MOEBENCH, "sweep", "--status", "demo"), "9 waiting"),
    ]


def prepare(place: Path, env: dict[str, str]) -> None:
    """Write the text, and the plan of a study without any run."""
    draw = random.Random(0)
    documents = ["".join(draw.choices("abcdefgh ", k=1000)) for _ in range(400)]
    (place / "text").mkdir()
    (place / "text" / "letters.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in documents)
    )
    write = (
        "from pathlib import Path\n"
        "from moebench.config.compose import Composer\n"
        "from moebench.study import make_plan\n"
        "words = ['study=demo', 'data=folder', 'data.path=text', 'data.valid_sequences=1',\n"
        "         'train.steps=1']\n"
        "make_plan(Composer(), words).write(Path('runs'))\n"
    )
    subprocess.run([sys.executable, "-c", write], cwd=place, env=env, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="The duration of commands.")
    parser.add_argument("--rounds", type=at_least_one, default=7)
    parser.add_argument("--arms", type=int, default=1000, help="of the sweep that is planned")
    args = parser.parse_args()
    rounds = args.rounds
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        env = {**os.environ, "MOEBENCH_CACHE": str(place / "cache"), "COLUMNS": "120"}
        prepare(place, env)
        each = commands(args.arms)
        times = [[one.seconds(env, place) for one in each] for _ in range(rounds)]
    where = f"Python {platform.python_version()}, {os.cpu_count()} cores"
    print(f"{where}, load {os.getloadavg()[0]:.1f}, {rounds} rounds; seconds")
    print(f"{'command':28} {'median':>7} {'fastest':>8} {'slowest':>8}")
    for one, took in zip(each, zip(*times, strict=True), strict=True):
        print(f"{one.name:28} {statistics.median(took):7.2f} {min(took):8.2f} {max(took):8.2f}")


if __name__ == "__main__":
    main()

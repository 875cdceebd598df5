"""The same config twice: every row, weight and moment is the same, in hexadecimal.

On a GPU `run.deterministic=true` promises it; here the GPU is the pretended one of the tests, in a
process of its own.
"""

import subprocess
import sys
from pathlib import Path

from tests.torture.runs import KINDS, finish, found
from tests.torture.topic import Counts, Topic, Untried

LONG = 500  # steps
GPU = "pretended GPU"


def attempts() -> list[str]:
    return [f"{kind}, {LONG} steps" for kind in (*KINDS, GPU)]


def attempt(name: str, folder: Path) -> Counts:
    """Train twice, and compare."""
    kind, number = name.removesuffix(" steps").split(", ")
    steps = int(number)
    words = (f"train.steps={steps}", f"train.eval_every={steps // 2}", "data.max_epochs=1000")
    words += (f"run.checkpoint_every={steps // 2}",)
    if kind == GPU:
        return _on_gpu(steps, folder)
    for again in "ab":
        finish(kind, folder / again, *words)
    one, other = found(folder / "a"), found(folder / "b")
    assert one, "nothing was trained"
    assert one == other, f"{sorted(one)} differ"
    return {"steps": steps, "runs": 2 * len(one)}


def _on_gpu(steps: int, folder: Path) -> Counts:
    command = [sys.executable, "-m", "tests.torture.on_pretended_gpu", str(folder), str(steps)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 77:
        raise Untried(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    return {"steps": steps, "runs": 2}


TOPIC = Topic(
    "determinism",
    "The same config gives the same bits: every row, weight, moment and TensorBoard point.",
    attempts,
    attempt,
    short=("shuffled, 20 steps", "stack, 20 steps", f"{GPU}, 5 steps"),
)

"""A sweep of six arms of which four come to grief, for any engine: the others must not notice."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from moebench.records import Record
from tests.doc_pages import ROOT

ARMS = ("micro", "shuffled", "sequence", "none", "global", "domain")
RAISES, KILLED, SEGFAULTS, CANCELLED = ARMS[:4]
FINISH = ARMS[4:]

# Python imports `sitecustomize` when it starts. The first sweep of a folder has no file `calm`.
TROUBLE = """
import ctypes, os, signal, time
from moebench.records import Record

def fail():
    raise ArithmeticError("of two\\nlines")

TROUBLES = {
    "micro": fail,
    "shuffled": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "sequence": lambda: ctypes.string_at(0),
    "none": lambda: time.sleep(2),
}
append = Record.append

def troubled(self, row):
    append(self, row)
    if row["step"] >= 3 and not os.path.exists(os.environ["CALM"]):
        TROUBLES.get(self.name.split("-")[0], int)()

Record.append = troubled
"""


class Ended(NamedTuple):
    code: int
    output: str
    errors: str


class Sweep:
    """A sweep in a folder, with the same words each time.

    Args:
        folder: empty; what the runs are and do is kept there.
        words: its launcher and options.
        environ: what it finds in its environment beside this process's.
    """

    def __init__(
        self, folder: Path, text: Path, *words: str, environ: Mapping[str, str] | None = None
    ) -> None:
        self.folder, self.runs = folder, folder / "runs"
        self._calm = folder / "calm"
        (folder / "sitecustomize.py").write_text(TROUBLE)
        path = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
        around = {**os.environ, **(environ or {})}
        self.environ = {**around, "PYTHONPATH": path, "CALM": str(self._calm), "COLUMNS": "200"}
        self._words = [
            *("model=smoke", "global_bsz=8", "seq_len=32", "data.valid_sequences=4"),
            *("train.steps=12", "train.eval_every=100", "data.max_epochs=1000", "run.device=cpu"),
            *("run.log_every=1", "run.checkpoint_every=100", "data=folder", f"data.path={text}"),
            *(f"scope={','.join(ARMS)}", "seed=0", *words),
        ]

    def start(self, *more: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "moebench.cli", "sweep", *self._words, *more],
            env=self.environ,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *more: str) -> Ended:
        return finished(self.start(*more))

    def calm(self) -> None:
        """From now on no arm comes to grief."""
        self._calm.touch()

    def record(self, arm: str) -> Record:
        [path] = [path for path in self.runs.iterdir() if path.name.startswith(f"{arm}-")]
        return Record(path)

    def step(self, arm: str) -> int:
        """The steps that an arm has completed; 0 before it begins."""
        return self._status(arm).get("step", 0)

    def terminate(self, arm: str) -> None:
        os.kill(self._status(arm)["pid"], signal.SIGTERM)

    def states(self) -> dict[str, str]:
        return {arm: self._status(arm).get("state", "waiting") for arm in ARMS}

    def reasons(self) -> dict[str, str]:
        return {arm: self._status(arm).get("reason", "") for arm in ARMS}

    def summaries(self) -> dict[str, int]:
        """When each finished arm was sealed, in nanoseconds."""
        paths = self.runs.glob("*/summary.json")
        return {path.parent.name.split("-")[0]: path.stat().st_mtime_ns for path in paths}

    def table(self) -> str:
        """What `sweep --status` shows."""
        command = [sys.executable, "-m", "moebench.cli", "sweep", "--status"]
        return subprocess.check_output(command, env=self.environ, cwd=self.folder, text=True)

    def _status(self, arm: str) -> dict[str, Any]:
        try:
            [path] = self.runs.glob(f"{arm}-*/status.json")
            return json.loads(path.read_text())
        except (ValueError, OSError):
            return {}


def finished(process: "subprocess.Popen[str]", seconds: float = 400) -> Ended:
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=90)
        raise AssertionError(f"{process.args}: {errors}") from None
    return Ended(process.returncode, output, errors)

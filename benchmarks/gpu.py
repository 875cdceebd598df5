"""All that can be known about moebench on a GPU, by one command: `make gpu`.

The parts of `gpu_parts.py` run one after another, each in a process of its own, with this Python
and from this checkout; nothing is installed. A part that fails or that the machine cannot run
leaves a reason, and the others go on. After each part, the figures are in OUT/<card>.json and the
page in OUT/<card>.md; their names also have the version of torch. Another call continues with the
parts that have not ended, and then repeats those that failed.

    python benchmarks/gpu.py [--minutes 8] [--out benchmarks/gpu]
"""

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from gpu_page import page, tables_of
from gpu_parts import FOLDER, Part, lacks, parts
from tables import markdown

ROOT = FOLDER.parent
PATIENCE = 3  # times its usual duration that a part may take
GRACE = 30  # seconds that a part has to end after SIGTERM
SHORT = 20  # seconds; with less time left, no part starts
OUTPUT = 4000  # characters of an error
ENDED = ("done", "skipped")


class Ended(NamedTuple):
    """How a command ended; `cut` if its time was up."""

    code: int
    out: str
    err: str
    cut: bool


def run(command: Sequence[str], seconds: float | None) -> Ended:
    """Run a command in the root of the checkout, for so many seconds at most; None: no limit."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    env, cut = {**os.environ, "PYTHONPATH": path}, False
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=out, stderr=err, process_group=0
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            cut = True
        finally:  # also after Ctrl-C
            _end(process)
        return Ended(process.returncode, _text(out), _text(err), cut)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it started: at first as a user would, so that it can save."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Book:
    """The results of all calls for one card and version of torch, on disk.

    Attributes:
        results: by the name of a part: `state` (done, failed, stopped, skipped), `commands`,
            `seconds`, `tables`, `reason`, `output`, and the hash of the `source`.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        name = f"{about['card']} torch {about['versions']['torch']}"
        slug = re.sub(r"[^\w.]+|_", "-", name).strip("-").lower()
        self.file, self.page = folder / f"{slug}.json", folder / f"{slug}.md"
        self.runs_dir = folder / "runs" / slug
        self.about = about
        self.results: dict[str, Any] = {}
        if self.file.exists():
            self.results = json.loads(self.file.read_text(encoding="utf-8"))["parts"]
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, of: Sequence[Part]) -> None:
        texts = {
            self.file: json.dumps({"machine": self.about, "parts": self.results}, indent=1) + "\n",
            self.page: page(self.about, self.results, of),
        }
        for path, text in texts.items():
            aside = path.with_name(f".{path.name}.new")
            aside.write_text(text, encoding="utf-8")
            os.replace(aside, path)

    def next_part(self, of: Sequence[Part], tried: set[str], left: float) -> Part | None:
        """The first part that has not ended and fits into the time left; then one that failed."""
        waiting = [part for part in of if part.name not in tried]
        states = {part.name: self.results.get(part.name, {}) for part in waiting}
        fresh = [
            part for part in waiting if states[part.name].get("state") not in (*ENDED, "failed")
        ]
        failed = [part for part in waiting if states[part.name].get("state") == "failed"]
        for part in (*fresh, *failed):
            cut_after = 0 if part.resumable else states[part.name].get("cut after", 0)
            if max(part.seconds, cut_after + SHORT) <= left:
                return part
        return None

    def take(self, part: Part, left: float) -> None:
        """Run a part within the time left, and keep its result."""
        began, own = time.monotonic(), PATIENCE * part.seconds
        limit = left - GRACE if part.resumable else min(left, own)
        ended = Ended(0, "", "", cut=False)
        for command in part.commands:
            rest = max(0.1, limit - (time.monotonic() - began))
            ended = run(command, None if rest == float("inf") else rest)
            if ended.code or ended.cut:
                break
        seconds = time.monotonic() - began
        result = self.results[part.name] = {
            "state": "done",
            "seconds": seconds,
            "commands": [shown(command) for command in part.commands],
            "source": self.about["source"],
            "tables": tables_of(ended.out),
        }
        if ended.cut and (part.resumable or limit < own):
            result |= {"state": "stopped", "reason": "time was up", "cut after": seconds}
        elif ended.cut:
            result |= {"state": "failed", "reason": f"took more than {own:.3g} s"}
        elif ended.code:
            result |= {"state": "failed", "reason": f"exit code {ended.code}"}
        if result["state"] == "failed":
            result["output"] = ended.err[-OUTPUT:].strip()


def shown(command: Sequence[str]) -> str:
    """A command as one types it in the root of the checkout."""
    words = ["python" if word == sys.executable else word for word in command]
    return shlex.join([word.removeprefix(f"{ROOT}{os.sep}") for word in words])


def machine() -> dict[str, Any]:
    """What `gpu_machine.py` says; it ends this process with one line where there is no GPU."""
    ended = run([sys.executable, str(FOLDER / "gpu_machine.py")], 300)
    try:
        about = json.loads(ended.out)
    except ValueError:
        about = {"card": None, "why": (ended.err.splitlines() or ["no answer"])[-1]}
    if about["card"] is None:
        plan = parts(Path("runs"))
        minutes = sum(part.seconds for part in plan) / 60
        first = ", ".join(part.name for part in plan[:6])
        fail(
            f"make gpu: no GPU to run on ({about['why']}); with one, it would run {len(plan)} "
            f"parts ({first}, ...) in about {minutes:.0f} minutes; name a Python that finds "
            f"one, as in PYTHON={sys.executable}, which was asked"
        )
    return about


def _listed(part: Part) -> dict[str, str | float]:
    commands = "; ".join(map(shown, part.commands))
    return {"part": part.name, "s": part.seconds, "needs": ", ".join(part.needs), "runs": commands}


def fail(line: str) -> None:
    print(f"error: {' '.join(line.split())}", file=sys.stderr)
    sys.exit(2)


def work(book: Book, of: Sequence[Part], seconds: float) -> None:
    """Run the parts that fit into this time."""
    deadline, tried = time.monotonic() + seconds, set()
    for part in of:
        if reason := lacks(part, book.about):
            if book.results.get(part.name, {}).get("state") != "done":
                book.results[part.name] = {"state": "skipped", "reason": reason}
            tried.add(part.name)
        elif book.results.get(part.name, {}).get("state") == "skipped":
            del book.results[part.name]  # what it lacked has come
    book.write(of)
    while part := book.next_part(of, tried, deadline - time.monotonic()):
        tried.add(part.name)
        print(f"{part.name} ...", file=sys.stderr, flush=True)
        book.take(part, deadline - time.monotonic())
        book.write(of)
        result = book.results[part.name]
        why = f": {result['reason']}" if "reason" in result else ""
        print(f"{part.name}: {result['state']}{why}, {result['seconds']:.0f} s", file=sys.stderr)


def parse_minutes(text: str) -> float:
    """Minutes above 0; endless for an empty text."""
    try:
        minutes = float(text or "inf")
    except ValueError:
        minutes = 0.0
    if not minutes > 0:
        fail(f"MINUTES={text}: must be a number above 0, as in MINUTES=8; without it, all runs")
    return minutes


def main() -> None:
    parser = argparse.ArgumentParser(description="All that can be known on a GPU.")
    parser.add_argument("--minutes", default="", help="the time for all; all parts without it")
    parser.add_argument("--out", type=Path, default=FOLDER / "gpu", help="folder of the results")
    parser.add_argument("--list", action="store_true", help="list the parts and stop")
    args = parser.parse_args()
    if args.list:
        rows = [_listed(part) for part in parts(Path("runs"))]
        print(markdown(rows))
        return
    minutes = parse_minutes(args.minutes)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the running part, too
    began = time.monotonic()
    about = machine()
    try:
        book = Book(args.out.resolve(), about)
    except (OSError, ValueError, KeyError) as error:
        fail(f"OUT={args.out}: cannot be used ({error}); name another folder, as in OUT=DIR")
        return
    if about["in use by others"] > 2**30:
        used = about["in use by others"] / 2**30
        print(f"warning: other programs hold {used:.1f} GiB of the GPU", file=sys.stderr)
    of = parts(book.runs_dir)
    try:
        work(book, of, 60 * minutes - (time.monotonic() - began))
    except KeyboardInterrupt:
        sys.exit(130)
    states = [book.results.get(part.name, {}).get("state", "waiting") for part in of]
    counts = ", ".join(f"{states.count(state)} {state}" for state in sorted({*states}))
    print(f"{book.page}: {counts}")


if __name__ == "__main__":
    main()

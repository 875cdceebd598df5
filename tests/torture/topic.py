"""What a torture is: a promise of moebench, attempts to break it, and what came of them.

Each attempt has a name, by which a run that was interrupted leaves out those that are done. Results
go to a folder, a file of lines for each topic, and from there to the page.
"""

import json
import math
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Counts = Mapping[str, int]
DEADLINE = 600  # seconds for a process to end, on a machine that others load


class Untried(Exception):  # noqa: N818, it is no error
    """An attempt that could not be made here, and why."""


@dataclass(frozen=True)
class Topic:
    """A promise, and attempts to break it.

    Attributes:
        name: as in the table of the page.
        promise: what must hold in every attempt, one sentence.
        attempts: the name of each attempt, made when the topic begins.
        attempt: makes one attempt in an empty folder. It returns what it did, in numbers, and
            raises AssertionError if the promise is broken.
        short: how many attempts are made in CI, spread evenly over all; or their names.
    """

    name: str
    promise: str
    attempts: Callable[[], Sequence[str]]
    attempt: Callable[[str, Path], Counts]
    short: int | Sequence[str]

    def chosen(self, *, short: bool) -> list[str]:
        """The names of the attempts to make."""
        if short and not isinstance(self.short, int):
            return list(self.short)
        names = list(self.attempts())
        if not short or not isinstance(self.short, int) or self.short >= len(names):
            return names
        stride = len(names) // self.short
        while math.gcd(stride, len(names)) > 1:  # else it could pass over whole kinds
            stride += 1
        return [names[index * stride % len(names)] for index in range(self.short)]


class Results:
    """What came of a topic's attempts, in a file of lines that is extended after each attempt."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        self.by_name: dict[str, dict[str, Any]] = {}
        for line in lines:
            made = json.loads(line)
            self.by_name[made["attempt"]] = made

    def add(self, result: dict[str, Any]) -> None:
        self.by_name[result["attempt"]] = result
        with open(self.path, "a") as file:
            file.write(json.dumps(result) + "\n")

    def done(self, name: str) -> bool:
        """Whether an attempt was made and held; a failed one is made again."""
        return not {"failed", "untried"} & self.by_name.get(name, {"failed": ""}).keys()

    def summary(self, topic: Topic) -> dict[str, Any]:
        """The numbers of the topic for the table."""
        made = list(self.by_name.values())
        counts = Counter[str]()
        for result in made:
            counts.update(result.get("counts", {}))
        return {
            "promise": topic.promise,
            "tried": sum("untried" not in result for result in made),
            "failed": [result for result in made if "failed" in result],
            "untried": sorted({result["untried"] for result in made if "untried" in result}),
            "counts": dict(sorted(counts.items())),
            "commits": sorted({result.get("with", {}).get("commit", "") for result in made} - {""}),
            "seconds": round(sum(result["seconds"] for result in made)),
        }


def make_attempt(topic: Topic, name: str, folder: Path) -> dict[str, Any]:
    """Make one attempt and return its result: `counts`, or why it `failed` or is `untried`."""
    began = time.monotonic()
    result: dict[str, Any] = {"attempt": name}
    try:
        result["counts"] = dict(topic.attempt(name, folder))
    except Untried as reason:
        result["untried"] = str(reason)
    except Exception as error:  # a promise is broken, or the torture itself
        where = traceback.extract_tb(error.__traceback__)[-1]
        kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        text = str(error).strip() or f"{where.name}: {where.line}"
        result["failed"] = f"{kind}{text}"[-1500:]
    result["seconds"] = round(time.monotonic() - began, 2)
    return result


def remaining(topic: Topic, results: Results, *, short: bool) -> Iterator[str]:
    """The names of the attempts that are still to be made."""
    return (name for name in topic.chosen(short=short) if not results.done(name))

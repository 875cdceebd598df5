"""Changes that a hand could make to a record, finished or not: edited, added, lost and swapped."""

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from moebench.disk import write_json
from moebench.records import Record
from tests.torture.runs import draw
from tests.torture.specimens import RECORDS, STOPPED_AT, damage, files, restored, specimen
from tests.torture.topic import Counts, Topic

# No record says that it had these: a run may have ended before, and nobody must evaluate it.
MAY_BE_MISSING = ("stopped status.json", "stopped tasks/cloze.json", "finished tasks/cloze.json")


def digit(path: Path, name: str) -> None:
    """One digit is another, as in a result that looks better."""
    content = path.read_bytes()
    places = [match.start() for match in re.finditer(rb"[0-9]", content)]
    at = draw(name).choice(places)
    other = (content[at] - 48 + draw(name).randint(1, 9)) % 10
    path.write_bytes(content[:at] + str(other).encode() + content[at + 1 :])


def lost(path: Path, _: str) -> None:
    path.unlink()


def empty(path: Path, _: str) -> None:
    path.write_bytes(b"")


def linked(path: Path, _: str) -> None:
    """A link to the file's own copy is no change; one to another file is."""
    path.unlink()
    path.symlink_to("/dev/null")


def piped(path: Path, _: str) -> None:
    path.unlink()
    os.mkfifo(path)


def key(path: Path, name: str) -> None:
    """A key of an object has another value."""
    content = json.loads(path.read_bytes())
    chosen = draw(name).choice(sorted(content))
    write_json(path, {**content, chosen: "another"})


def row(path: Path, name: str) -> None:
    """A row is left out, doubled, or takes the place of the next."""
    lines = path.read_bytes().splitlines(keepends=True)
    at = draw(name).randrange(len(lines) - 1)
    ways = (lines[:at] + lines[at + 1 :], lines[:at] + lines[at:] * 2, lines[::-1])
    path.write_bytes(b"".join(draw(name).choice(ways)))


CHANGES: dict[str, tuple[Callable[[Path, str], None], str]] = {
    "digit": (digit, r".*\.(json|jsonl|yaml)"),
    "key": (key, r".*\.json"),
    "row": (row, r"metrics\.jsonl"),
    "lost": (lost, r".*"),
    "empty": (empty, r".*"),
    "linked": (linked, r".*"),
    "piped": (piped, r".*"),
}


def attempts() -> Sequence[str]:
    names = [
        f"{kind} {change} {file}"
        for kind in RECORDS
        for file in files(specimen(kind))
        for change, (_, pattern) in CHANGES.items()
        if re.fullmatch(pattern, file)
        and not (change == "lost" and f"{kind} {file}" in MAY_BE_MISSING)
    ]
    whole = [f"{kind} {change} ." for kind in RECORDS for change in ("added", "swapped")]
    return [*names, *whole]


def attempt(name: str, folder: Path) -> Counts:
    kind, change, file = name.split(" ")
    record = specimen(kind)
    if file == ".":
        copy = Record(folder / record.name)
        shutil.copytree(record.path, copy.path)
        (_add if change == "added" else _swap)(copy)
        assert damage(copy), "verify finds nothing"
        return {"files added or swapped": 1}
    with restored(record.path / file):
        CHANGES[change][0](record.path / file, name)
        assert damage(record), "verify finds nothing"
    assert damage(record) == [], "the specimen is whole again"
    return {"files changed by hand": 1}


def _add(record: Record) -> None:
    shutil.copy(record.path / "routing/step-0.npz", record.path / "routing/step-1.npz")


def _swap(record: Record) -> None:
    """The two last evaluations change places; they have equal shapes."""
    last = max(step for step in record.routing_steps() if step <= STOPPED_AT)
    one, other = (record.path / f"routing/step-{step}.npz" for step in (0, last))
    aside = one.with_name(".aside")
    os.replace(one, aside)
    os.replace(other, one)
    os.replace(aside, other)


TOPIC = Topic(
    name="provenance",
    promise="Any change to a record, sealed or not, is found by `moebench verify`.",
    attempts=attempts,
    attempt=attempt,
    short=40,
)

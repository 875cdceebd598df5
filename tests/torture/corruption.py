"""Flipped bits and cut ends in every file of a finished and of a stopped record."""

from collections.abc import Sequence
from pathlib import Path

from tests.torture.runs import draw
from tests.torture.specimens import RECORDS, damage, files, refusal, restored, specimen
from tests.torture.topic import Counts, Topic

ATTEMPTS, FLIPS = 100, 10  # and as many files cut short as attempts


def attempts() -> Sequence[str]:
    names = [f"{kind} {name}" for kind in RECORDS for name in files(specimen(kind))]
    return [f"{names[number % len(names)]} {number // len(names)}" for number in range(ATTEMPTS)]


def attempt(name: str, _folder: Path) -> Counts:
    kind, file, _ = name.split(" ")
    record, random = specimen(kind), draw(name)
    path = record.path / file
    with restored(path) as content:
        for _ in range(FLIPS):
            changed = bytearray(content)
            changed[at := random.randrange(len(content))] ^= 1 << (bit := random.randrange(8))
            path.write_bytes(changed)
            _check(kind, file, f"bit {bit} of byte {at} is another")
        path.write_bytes(content[: (end := random.randrange(len(content)))])
        _check(kind, file, f"it ends after {end} bytes of {len(content)}")
    assert damage(record) == [], "the specimen is whole again"
    return {"bits flipped": FLIPS, "files cut short": 1}


def _check(kind: str, file: str, what: str) -> None:
    record = specimen(kind)
    assert damage(record), f"verify finds nothing: {what}"
    assert refusal(record, file), f"its reader takes it: {what}"


TOPIC = Topic(
    name="corruption",
    promise="A changed or lost byte in any file of a record is found by `moebench verify` and by "
    "the reader that would use it.",
    attempts=attempts,
    attempt=attempt,
    short=24,
)

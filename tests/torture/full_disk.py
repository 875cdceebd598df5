"""A disk that runs full at many levels, under each command that writes."""

import errno
from functools import cache
from pathlib import Path

from tests.torture.commands import COMMANDS, said
from tests.torture.disk import VARIABLE, Disk, Mode
from tests.torture.runs import room
from tests.torture.topic import DEADLINE, Counts, Topic

LEVELS = 20


def attempts() -> list[str]:
    return [f"{name} {level}/{LEVELS}" for level in range(LEVELS) for name in COMMANDS]


def attempt(name: str, folder: Path) -> Counts:
    """Let the disk have room for a part of what a command writes; then for all."""
    phase, level = name.split()
    command, place = COMMANDS[phase], folder / "place"
    part = int(level.split("/")[0]) / LEVELS
    command.prepare(place)
    disk = Disk(place, folder / "disk")
    room_for = int(part * _bytes(phase))
    full = disk.trouble(Mode.FULL, room_for, errno.ENOSPC)
    process = command.start(place, env={VARIABLE: full})
    _, errors = process.communicate(DEADLINE)
    last = said(errors)
    counts = {"full": int(disk.met)}
    if process.returncode:
        assert "No space left on device" in errors, f"does not say why: {errors}"
        assert last.startswith("error: "), last
        # a sweep names the run, as its reader knows it
        named = ("-s0-", "runs/", "runs:", "cache/", "page.html", "plots")
        assert any(each in last for each in named), f"names no path: {last}"
        assert " bytes" in last, f"names no bytes: {last}"
        counts["said so"] = 1
    command.finish(place)
    return counts


@cache
def _bytes(phase: str) -> int:
    """What a command writes when there is room."""
    place, command = room() / f"written-{phase}", COMMANDS[phase]
    command.prepare(place)
    disk = Disk(place, room() / f"written-{phase}-disk")
    process = command.start(place, env={VARIABLE: disk.trouble(Mode.RECORD)})
    _, errors = process.communicate(DEADLINE)
    assert process.returncode == 0, errors
    return disk.bytes


TOPIC = Topic(
    "full disk",
    "A disk that runs full ends the command with a line that names path and bytes; the command "
    "repeated on a disk with room ends as if nothing had happened.",
    attempts,
    attempt,
    short=5,
)

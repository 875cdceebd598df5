"""Stop signals at random moments, under each command; two, in every third attempt."""

import signal
import time
from pathlib import Path

from tests.calls import is_running
from tests.torture.commands import COMMANDS, said, seconds
from tests.torture.runs import draw, records
from tests.torture.topic import DEADLINE, Counts, Topic

ATTEMPTS = 20  # of each command
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
SOON = 0.3  # seconds within which a second signal follows


def attempts() -> list[str]:
    return [f"{name} {number}" for number in range(ATTEMPTS) for name in COMMANDS]


def attempt(name: str, folder: Path) -> Counts:
    """Send signals to a command, and repeat it."""
    phase, number = name.split()
    command, place, chance = COMMANDS[phase], folder / "place", draw(name)
    command.prepare(place)
    duration = seconds(phase)
    process = command.start(place)
    time.sleep(chance.uniform(0, duration))
    first = chance.choice(SIGNALS)
    sent = [first, chance.choice((first, signal.SIGINT))] if int(number) % 3 == 2 else [first]
    for each in sent:
        if each is not first or len(sent) > 1:
            time.sleep(chance.uniform(0, SOON))
        process.send_signal(each)
    out, errors = process.communicate(DEADLINE)
    said(errors)
    code = process.returncode
    early = code is not None and code < 0 and not errors and not (place / "runs").exists()
    codes = {0, 130, 75}
    assert early or code in codes, f"exit code {code} after {sent}: {errors or out}"
    if code in (130, 75):
        assert errors.strip().splitlines()[-1].startswith("error: "), errors
    for record in records(place / "runs"):
        pid = record.status().get("pid")
        if not record.is_done() and isinstance(pid, int) and phase == "sweep":
            assert not is_running(pid), f"process {pid} of {record.name} still runs"
    command.finish(place)
    return {"signals": len(sent), "double": int(len(sent) > 1), "stopped": int(code != 0)}


TOPIC = Topic(
    "preemption",
    "A stop signal at any moment, or two, ends a command in order: one line, exit code 130 or 75, "
    "no process left, and the command repeated ends as if nothing had happened.",
    attempts,
    attempt,
    short=5,
)

"""What a step of each arm of a study costs: `cost.json` beside its plan, where it was timed."""

from pathlib import Path
from typing import NamedTuple

from moebench.contents import NUMBER, TEXT, each, fields, table
from moebench.disk import read_checked
from moebench.errors import RecordError
from moebench.records import printable

COST_FILE = "cost.json"


class Cost(NamedTuple):
    """Seconds a step of an arm that was timed alone, and how many of them counting takes."""

    step_seconds: tuple[float, ...]
    counting_seconds: tuple[float, ...]
    machine: str


COSTS = table(
    fields(
        {},
        {
            **dict.fromkeys(("step_seconds", "counting_seconds"), each(NUMBER)),
            "machine": TEXT,
        },
    )
)


def read_costs(folder: Path) -> dict[str, Cost]:
    """What each arm of a study costs, by arm hash; empty where the study was not timed.

    The file `cost.json` is `{arm_hash: {"step_seconds": [..], "counting_seconds": [..],
    "machine": ".."}}`.

    Raises:
        RecordError: if the file is damaged.
    """
    path = folder / COST_FILE
    if not path.exists():
        return {}
    content, wrong = read_checked(path, COSTS)
    if wrong:
        raise RecordError(f"{path}: is not a table of costs ({wrong}); time the study again")
    return {
        arm_hash: Cost(
            tuple(map(float, cost["step_seconds"])),
            tuple(map(float, cost.get("counting_seconds", ()))),
            printable(cost.get("machine", "?")),
        )
        for arm_hash, cost in content.items()
        if cost.get("step_seconds")
    }

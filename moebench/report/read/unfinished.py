"""The runs without results: those that failed, stopped, wait, are running or have not begun."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from moebench.plans import Plan
from moebench.records import printable
from moebench.report.read.conditions import as_typed, condition, value_of
from moebench.report.read.frame import Frame, load
from moebench.report.read.interim import NOT_BEGUN, not_begun

MOST_VALUES = 8  # of a key in an error


class Unfinished(NamedTuple):
    """A run without results: its state, why, and how many of its steps it has made."""

    run: str
    state: str
    reason: str
    step: float | None
    steps: float | None

    def __str__(self) -> str:
        where = f" at step {self.step:.0f}" if self.step is not None else ""
        if where and self.steps is not None:
            where += f" of {self.steps:.0f}"
        why = self.reason.rpartition(f"{self.run}: ")[2]  # of a line as wide as a terminal
        return f"{self.run}: {self.state}{where}" + (f": {why}" if why else "")


def unfinished(frame: Frame, plans: Sequence[Plan]) -> list[Unfinished]:
    """The runs of a frame without results, and those that some plans have and the frame has not."""
    begun = [
        Unfinished(str(row["run"]), str(row["state"]), str(row["reason"]), *_steps(row))
        for row in frame.rows()
        if row["state"] != "done"
    ]
    missing = [printable(job.run) for job in not_begun(frame, plans)]
    return begun + [Unfinished(run, NOT_BEGUN, "", None, None) for run in missing]


def _steps(row: Mapping[str, Any]) -> tuple[float | None, float | None]:
    step, steps = (None if row[key] != row[key] else row[key] for key in ("step", "steps"))
    return step, steps


def nothing_done(
    roots: Sequence[Path],
    study: str | None,
    frame: Frame,
    where: Sequence[str] = (),
    only: Collection[str] | None = None,
) -> str:
    """Why there is nothing to report, for an error.

    Args:
        frame: of the runs of the roots that meet the conditions `where`.
        only: names of the runs that were read; None: all.
    """
    if where and not frame.rows():
        frame = load(roots, only)
        if line := _unmet(where, frame):
            return line
    place = ", ".join(map(str, roots)) + (f", study {printable(study)}" if study else "")
    counts = frame.runs["state"].value_counts(sort=False).to_dict()
    states = [f"{n} {state}" for state, n in counts.items()]
    if frame.problems:
        first = frame.problems[0]
        states.append(f"{len(frame.problems)} left out, the first: {first}")
    details = f" ({'; '.join(states)})" if states else ""
    running = "running" in counts and not frame.problems
    remedy = "wait for their first evaluation" if running else "make some with moebench sweep"
    return f"{place}: holds no finished run{details}; {remedy}"


def _unmet(where: Sequence[str], frame: Frame) -> str:
    """Which conditions no finished run of a frame meets, for an error; "" if that says nothing."""
    done = [row for row in frame.rows() if row["state"] == "done"]
    if not done:
        return ""
    wrong = next((text for text in where if not any(map(condition(text), done))), None)
    if wrong is None:
        words = " ".join(f"--where {text}" for text in where)
        return printable(f"{words}: no finished run matches all of them; leave one out")
    key = wrong.partition("=")[0]
    values = sorted({as_typed(value_of(row, key)) for row in done}, key=lambda v: (len(v), v))
    more = f" and {len(values) - MOST_VALUES} more" if len(values) > MOST_VALUES else ""
    have = ", ".join(values[:MOST_VALUES]) + more
    return printable(f"--where {wrong}: no finished run matches; they have {key} {have}")

"""A study that runs or was stopped: the evaluation at which its arms may be compared meanwhile."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moebench.errors import RecordError
from moebench.plans import Job, Plan
from moebench.records import STATES, Record, printable
from moebench.report.read.frame import Frame
from moebench.report.read.run import unfinished_status

NOT_BEGUN = "not begun"
OVER = ("done", "failed")  # states of a run that is not continued


@dataclass(frozen=True)
class Interim:
    """Where the arms of a table are compared before its study has ended.

    Attributes:
        step, steps: the last evaluation that all compared runs share, and the planned steps; step
            is None where they share none, so that only what is finished is shown.
        seeds: that are compared.
        waiting: seeds that have begun, but have not come so far in every arm.
        left: number of runs that have not ended, by state.
        chosen: whether a reader chose the step; then only finished runs are compared.
    """

    step: int | None
    steps: int | None
    seeds: tuple[int, ...]
    waiting: tuple[int, ...]
    left: Mapping[str, int]
    chosen: bool = False


def interim(
    frame: Frame, rows: Sequence[Mapping[str, Any]], plans: Sequence[Plan]
) -> tuple[Interim, Frame] | None:
    """Where to compare a table whose study has not ended, and its metrics there.

    A study has ended when all runs that it plans are done or failed, also those that the reader did
    not choose; runs of no plan count only where none is finished. Arms are compared over whole
    seeds: all arms that were evaluated after step 0, all at one step. It is the last one that all
    seeds share, but a seed that has just begun does not take the others back to its start: of the
    steps, the one with the largest product of step and squared number of whole seeds is taken,
    since intervals need seeds more than steps.

    Args:
        frame: of all runs, checked.
        rows: of its runs, those of one table.
        plans: of the runs.

    Returns:
        None if the study has ended.
    """
    names = {row["run"] for row in rows}
    own = [plan for plan in plans if any(job.run in names for job in plan.jobs)]
    planned = {job.run: job for plan in own for job in plan.jobs}
    absent = _absent(frame, own)
    pending = {(job.arm_hash, job.seed) for job, record in absent if record is None}
    nothing_done = all(row["state"] != "done" for row in rows)
    left = Counter(
        row["state"]
        for row in rows
        if row["state"] not in OVER and (nothing_done or row["run"] in planned)
    )
    others = [_state(record) for _, record in absent if record is not None]
    left += Counter(state for state in others if state not in OVER)
    left[NOT_BEGUN] = len(pending)
    if not left.total():
        return None
    evaluated = {run: {step for step, _ in each if step} for run, each in frame.learning.items()}
    step, seeds, runs = _shared(rows, pending, evaluated)
    waiting = sorted({row["seed"] for row in rows} - {*seeds})
    steps = next((int(row["steps"]) for row in rows if row["steps"] == row["steps"]), None)
    in_order = {state: left[state] for state in (*STATES, NOT_BEGUN) if left[state]}
    found = Interim(step, steps, tuple(seeds), tuple(waiting), in_order)
    return found, frame if step is None else frame.of(runs, step)


def not_begun(frame: Frame, plans: Sequence[Plan]) -> list[Job]:
    """The planned jobs without a record, each run once."""
    return [job for job, record in _absent(frame, plans) if record is None]


def _absent(frame: Frame, plans: Sequence[Plan]) -> list[tuple[Job, Record | None]]:
    """The planned jobs that a frame lacks, and their records beside the plan.

    A frame may hold only some of the runs: those that a reader chose.
    """
    known = {*frame.runs["run"], *(problem.run for problem in frame.problems)}
    found: dict[str, tuple[Job, Record | None]] = {}
    for plan in plans:
        for job in plan.jobs:
            if printable(job.run) not in known and found.get(job.run, (job, None))[1] is None:
                record = Record(plan.folder.parents[1] / job.run) if plan.folder else None
                found[job.run] = job, record if record is not None and record.exists() else None
    return list(found.values())


def _state(record: Record) -> str:
    """The state of a run; that of a damaged record is "failed", as no sweep continues it."""
    try:
        return "done" if record.is_done() else str(unfinished_status(record)["state"])
    except RecordError:
        return "failed"


def _shared(
    rows: Sequence[Mapping[str, Any]],
    pending: set[tuple[str, int]],
    evaluated: Mapping[str, set[int]],
) -> tuple[int | None, list[int], set[str]]:
    """The step at which most is compared, with its whole seeds and their runs."""
    arms = {row["arm_hash"] for row in rows if evaluated.get(row["run"])}
    lacking = {seed for arm_hash, seed in pending if arm_hash in arms}
    by_seed: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["arm_hash"] in arms and row["seed"] not in lacking:
            by_seed.setdefault(row["seed"], []).append(row)

    def whole(seed: int, step: int) -> bool:
        at = [step in evaluated.get(row["run"], ()) for row in by_seed[seed]]
        failed = [row["state"] == "failed" for row in by_seed[seed]]
        return any(at) and all(map(max, at, failed))

    best: tuple[int | None, list[int]] = None, []
    most = 0
    for step in sorted(set().union(*evaluated.values())):
        seeds = [seed for seed in sorted(by_seed) if whole(seed, step)]
        if len(seeds) ** 2 * step > most:
            best, most = (step, seeds), len(seeds) ** 2 * step
    step, seeds = best
    runs = {
        row["run"]
        for seed in seeds
        for row in by_seed[seed]
        if step in evaluated.get(row["run"], ())
    }
    return step, seeds, runs

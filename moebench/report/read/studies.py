"""Studies as they were planned: which runs belong to one, and which comparison is the point."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from moebench.disk import read_json
from moebench.errors import RecordError
from moebench.records import COSTS, printable
from moebench.report.read.frame import Problem
from moebench.report.read.run import PRIMARY

_STRINGS = ("run", "arm", "arm_hash")


class Cost(NamedTuple):
    """Seconds a step of an arm that was timed alone, and of the pass that counts first."""

    step_seconds: tuple[float, ...]
    counting_seconds: tuple[float, ...]
    machine: str


class PlannedRun(NamedTuple):
    run: str
    arm: str
    arm_hash: str
    seed: int


@dataclass(frozen=True)
class Plan:
    """A study's `plan.json`: `baseline` is the label of an arm, `primary` the name of a metric.

    `overrides` are those of each of the runs. `costs` is by arm hash, from `cost.json` beside the
    plan, where the study was timed.
    """

    path: Path
    name: str
    question: str
    baseline: str
    primary: str
    runs: tuple[PlannedRun, ...]
    size: str = ""
    overrides: tuple[tuple[str, ...], ...] = ()
    costs: dict[str, Cost] = field(default_factory=dict)

    def arm_hashes(self) -> list[str]:
        """The arms in the order of the plan."""
        return list(dict.fromkeys(run.arm_hash for run in self.runs))

    def baseline_hash(self) -> str | None:
        """The first arm under the baseline's label; None if the plan has no such arm."""
        return next((run.arm_hash for run in self.runs if run.arm == self.baseline), None)


def find_plans(roots: Iterable[Path]) -> tuple[list[Plan], list[Problem]]:
    """The plans beside the runs of some directories, by name, and those that cannot be read."""
    paths = {path.resolve(): path for root in roots for path in root.glob("studies/*/plan.json")}
    plans, problems = [], []
    for path in sorted(paths.values()):
        try:
            plans.append(_read(path))
        except RecordError as error:
            problems.append(Problem(printable(f"studies/{path.parent.name}"), str(error)))
    return plans, problems


def of_study(
    study: str, plans: Sequence[Plan], problems: Sequence[Problem], runs_dir: Path
) -> list[Plan]:
    """The plans of a study, by its name or by the name of a plan's own directory.

    A study that was run in several sizes has several plans. `runs_dir` is for the error.

    Raises:
        RecordError: if there is none, naming the nearest, or if one cannot be read.
    """
    for name, reason in problems:
        if study in (_study_of(name), name.removeprefix("studies/")):
            raise RecordError(f"{name}: {reason}; plan it again with moebench sweep study={study}")
    found = [plan for plan in plans if study in (plan.name, plan.path.parent.name)]
    if found:
        return found
    names = sorted({plan.name for plan in plans})
    near = difflib.get_close_matches(study, names, n=3) or names
    known = f"there are {', '.join(near)}" if names else "none was run yet"
    raise RecordError(
        f"--study {printable(study)}: no such study in {runs_dir}; {known}; "
        "make it with moebench sweep study=NAME"
    )


def _study_of(directory: str) -> str:
    return directory.removeprefix("studies/").rpartition("-")[0]


def _read(path: Path) -> Plan:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        raise RecordError("plan.json: cannot be read as JSON") from None
    runs = found.get("runs")
    if not isinstance(runs, list) or not all(map(_is_run, runs)):
        raise RecordError("plan.json: holds no usable list 'runs'")
    return Plan(
        path=path,
        name=printable(str(found.get("name") or _study_of(path.parent.name))),
        question=printable(str(found.get("question") or "")),
        baseline=str(found.get("baseline") or ""),
        primary=str(found.get("primary") or PRIMARY),
        runs=tuple(PlannedRun(*(run[key] for key in PlannedRun._fields)) for run in runs),
        size=str(found.get("size") or ""),
        overrides=tuple(tuple(map(str, run.get("overrides") or ())) for run in runs),
        costs=_costs(path.with_name(COSTS)),
    )


def _costs(path: Path) -> dict[str, Cost]:
    """`{arm_hash: {"step_seconds": [..], "counting_seconds": [..], "machine": ".."}}`."""
    if not path.exists():
        return {}
    try:
        found = read_json(path)
        return {
            arm_hash: Cost(
                tuple(float(each) for each in cost["step_seconds"]),
                tuple(float(each) for each in cost.get("counting_seconds", ())),
                printable(str(cost.get("machine", "?"))),
            )
            for arm_hash, cost in found.items()
            if isinstance(cost, dict) and cost.get("step_seconds")
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise RecordError(f"{COSTS}: is no table of costs; time the study again") from None


def _is_run(run: Any) -> bool:
    return (
        isinstance(run, dict)
        and all(isinstance(run.get(key), str) for key in _STRINGS)
        and type(run.get("seed")) is int
    )

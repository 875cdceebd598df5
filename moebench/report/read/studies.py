"""The studies beside some runs: their plans with the costs of arms, and what cannot be read."""

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from moebench.disk import MAX_JSON_BYTES, read_bytes
from moebench.errors import RecordError, nearest
from moebench.plans import EDITED, GRID, Plan, find_plan_files, read_plan, study_of
from moebench.records import printable
from moebench.report.read.frame import Problem
from moebench.step_costs import read_costs


def find_plans(roots: Iterable[Path], study: str | None = None) -> tuple[list[Plan], list[Problem]]:
    """The plans beside the runs of some directories, by path, and those that cannot be read.

    A plan whose costs cannot be read has none, and says why.

    Args:
        study: read only the plans of this study if there are any, by its name or its folder's.
    """
    unique = {path.resolve(): path for root in roots for path in find_plan_files(root)}
    paths = sorted(unique.values())
    if study is not None:
        paths = [path for path in paths if _names(path, study)] or paths
    plans, problems = [], []
    for path in paths:
        try:
            plans.append(_with_costs(read_plan(path), path.parent))
        except RecordError as error:
            problems.append(Problem(_name(path.parent), _reason(error, path.parent)))
    return plans, problems


def _names(path: Path, study: str) -> bool:
    """Whether a plan may be of a study; to read the whole plan takes 100 times as long."""
    if study in (path.parent.name, study_of(path.parent)):
        return True
    name = re.escape(json.dumps(study).encode())
    with suppress(OSError, ValueError):
        return re.search(rb'"name":\s*' + name, read_bytes(path, MAX_JSON_BYTES)) is not None
    return False


def _with_costs(plan: Plan, folder: Path) -> Plan:
    try:
        return replace(plan, costs=read_costs(folder))
    except RecordError as error:
        return replace(plan, bad_costs=_reason(error, folder))


def _name(folder: Path) -> str:
    return printable(f"studies/{folder.name}")


def _reason(error: RecordError, folder: Path) -> str:
    return str(error).removeprefix(f"{folder}/")


def damaged(plans: Iterable[Plan]) -> list[Problem]:
    """The plans that are not what their sweeps wrote, and those whose costs cannot be read."""
    return [
        Problem(_name(plan.folder), reason)
        for plan in plans
        if plan.folder
        for reason in (f"plan.json: {EDITED}" * plan.edited, plan.bad_costs)
        if reason
    ]


def find_wanted(
    roots: Iterable[Path], study: str | None, runs_dir: Path
) -> tuple[list[Plan], list[Problem]]:
    """As `find_plans`, or the plans of a study alone, all of which can be read.

    Args:
        study: by the name of a plan or of its folder; None for all plans.
        runs_dir: for the error.

    Raises:
        RecordError: as of `plans_of_study`.
    """
    plans, problems = find_plans(roots, study)
    if study is None:
        return plans, problems
    return plans_of_study(study, plans, problems, runs_dir), []


def plans_of_study(
    study: str,
    plans: Sequence[Plan],
    problems: Sequence[Problem],
    runs_dir: Path,
) -> list[Plan]:
    """The plans of a study, by its name or by the name of a plan's folder.

    A study that was run in several sizes has several plans. So has a grid without a name of its
    own, but two such grids have nothing in common unless the arms of one are those of the other.

    Args:
        study: a name.
        plans, problems: as `find_plans` returns them.
        runs_dir: for the error.

    Raises:
        RecordError: if there is none, naming the nearest, if one cannot be read, or if the name is
            that of several grids.
    """
    for problem in problems:
        folder = Path(problem.run)
        if study in (study_of(folder), folder.name):
            raise RecordError(str(problem))
    matches = [plan for plan in plans if plan.folder and study in (plan.name, plan.folder.name)]
    if matches:
        _check_one_grid(study, matches)
        return matches
    names = sorted({plan.name for plan in plans})
    near = nearest(study, names) or names
    known = f"there are {printable(', '.join(near))}" if names else "none was run yet"
    raise RecordError(
        f"--study {printable(study)}: no such study in {runs_dir}; {known}; make it with moebench "
        "sweep study=NAME"
    )


def _check_one_grid(study: str, plans: Sequence[Plan]) -> None:
    """Raise RecordError for different grids without names of their own."""
    arms = [{job.arm_hash for job in plan.jobs} for plan in plans]
    if study == GRID and not any(all(own <= most for own in arms) for most in arms):
        names = ", ".join(plan.slug for plan in plans)
        raise RecordError(
            printable(
                f"--study {study}: is the name of {len(plans)} grids; choose one of {names}, and "
                "give the next one a name with moebench sweep --name"
            )
        )

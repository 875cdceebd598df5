"""The commands that train the runs of a report again, as they are pasted into an empty folder."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from moebench.plans import Plan
from moebench.report.infer.arms import Table


def again(tables: Sequence[Table], plans: Sequence[Plan], paths: Mapping[str, Path]) -> list[str]:
    """Commands that train the runs of some tables again: a sweep a study, which makes its plan too.

    Before it, the command that makes the trials, where a search has chosen values.

    Runs of no plan, and of plans that do not hold what was typed, are trained one by one.

    Args:
        tables: of the report.
        plans: of the runs.
        paths: of the runs, by name.
    """
    named = {run for table in tables for arm in table.arms for run in arm.runs.values()}
    commands, left = [], {*named}
    for plan in plans:
        runs = {job.run for job in plan.jobs}
        if not runs & left:
            continue
        if plan.typed is not None:
            if plan.tuned_by:
                commands.append(shlex.join(["moebench", *plan.tuned_by]))
            commands.append(shlex.join(["moebench", "sweep", *plan.typed]))
        else:
            commands += [
                shlex.join(["moebench", "train", *job.overrides])
                for job in plan.jobs
                if job.run in left
            ]
        left -= runs
    for run, path in sorted(paths.items()):
        if run in left:
            words = ["moebench", "train", "--config", f"{path}/config.yaml", "--runs-dir", "again"]
            commands.append(shlex.join(words))
    return commands

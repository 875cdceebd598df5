"""The commands that train the runs of a report again."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from moebench.plans import Plan
from moebench.report.infer.arms import Table


def again(tables: Sequence[Table], plans: Sequence[Plan], paths: Mapping[str, Path]) -> list[str]:
    """Commands that train the runs of some tables again, by their plan or else their record.

    Args:
        tables: of the report.
        plans: of the runs.
        paths: of the runs, by name.
    """
    named = {run for table in tables for arm in table.arms for run in arm.runs.values()}
    commands, planned = [], set()
    for plan in plans:
        if plan.size and any(job.run in named for job in plan.jobs):
            typed = [f"study={plan.name}", f"study.size={plan.size}"]
            shared = [
                override
                for override in plan.jobs[0].overrides
                if all(override in job.overrides for job in plan.jobs)
            ]
            sweep = shlex.join(["moebench", "sweep", *typed])
            commands.append(f"{sweep}  # with {shlex.join(shared)}")
        for job in plan.jobs:
            if job.run in named - planned:
                planned.add(job.run)
                commands.append(shlex.join(["moebench", "train", *job.overrides]))
    for run, path in sorted(paths.items()):
        if run in named - planned:
            config = ["--config", f"{path}/config.yaml", "--runs-dir", "again"]
            commands.append(shlex.join(["moebench", "train", *config]))
    return commands

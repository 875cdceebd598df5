"""The part of a plan that its stopping rule has reached."""

from moebench.looks import looks, reached
from moebench.plans import Plan
from moebench.records import Record


def at_its_look(plan: Plan, number: int | None = None) -> Plan:
    """The runs of a look: by default of the first that has all seeds that have begun in every arm.

    A seed of which some arms alone have begun counts for nothing: another study may share them.
    """
    if plan.most_seeds is None or plan.folder is None:
        return plan
    if number is not None:
        return plan.first(looks(plan.most_seeds)[number - 1].seeds)
    runs_dir = plan.folder.parents[1]
    lacking = {job.seed for job in plan.jobs if not Record(runs_dir / job.run).exists()}
    begun = [place for place, seed in enumerate(plan.seeds, 1) if seed not in lacking]
    return plan.first(reached(plan.most_seeds, max(begun, default=0)).seeds)

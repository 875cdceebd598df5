"""What a table keeps of its study's preregistration, and what not."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from moebench.plans import Plan
from moebench.registration import Registration, deviations


class Registered(NamedTuple):
    """The preregistration of a table's study.

    Attributes:
        sha256: of its content.
        date: when it was written, in ISO format.
        deviations: of the runs from it, a phrase each.
    """

    sha256: str
    date: str
    deviations: tuple[str, ...]


def registered(
    known: Sequence[Registration], plans: Sequence[Plan], runs: Sequence[Mapping[str, Any]]
) -> Registered | None:
    """The preregistration of the plan of some runs, else the latest of a study of that name.

    Args:
        known: preregistrations, the latest last.
        plans: of the runs, with the seeds of the look that each has reached.
        runs: rows of the frame, that are reported.
    """
    slugs = {plan.slug if plan.folder is None else plan.folder.name: plan for plan in plans}
    own = [(each, slugs.get(str(each.content.get("plan")))) for each in known]
    pairs = [(each, plan) for each, plan in own if plan is not None]
    if not pairs:
        pairs = [
            (each, plan)
            for each in known
            for plan in plans
            if plan.name == each.content.get("study")
        ]
    if not pairs:
        return None
    registration, plan = pairs[-1]
    found = deviations(
        registration,
        plan,
        seeds={run["seed"] for run in runs},
        arms={run["arm_hash"]: run["arm"] for run in runs},
        commits=sorted({run["made_with"].get("commit", "unknown") for run in runs}),
        first_end=min((run["end"] for run in runs if run["end"]), default=""),
    )
    return Registered(registration.digest, str(registration.content.get("date")), tuple(found))

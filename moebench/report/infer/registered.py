"""What a table keeps of its study's preregistration, and what not."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from moebench.plans import Plan
from moebench.registration import Registration, deviations


class Registered(NamedTuple):
    """The preregistration of a table's study.

    Attributes:
        sha256: of its content; "" for a damaged one.
        date: when it was written, in ISO format; "" for a damaged one.
        deviations: of the runs from it, a phrase each.
    """

    sha256: str
    date: str
    deviations: tuple[str, ...]


def registered(
    known: Sequence[Registration],
    plans: Sequence[Plan],
    runs: Sequence[Mapping[str, Any]],
    every: Sequence[Mapping[str, Any]],
    *,
    complete: bool,
) -> Registered | None:
    """The preregistration of the plan of some runs, else the latest of a study of that name.

    Args:
        known: preregistrations, the latest last.
        plans: of the runs, with the seeds of the look that each has reached.
        runs: rows of the frame, that are reported.
        every: rows with results, of all tables.
        complete: whether the study has ended, or its look.
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
    seeds: dict[str, set[int]] = {}
    for run in every:
        seeds.setdefault(run["arm_hash"], set()).add(run["seed"])
    found = deviations(
        registration,
        plan,
        seeds=seeds,
        arms={run["arm_hash"]: run["arm"] for run in runs},
        commits=sorted({run["made_with"].get("commit", "unknown") for run in runs}),
        first_end=min((run["end"] for run in runs if run["end"]), default=""),
        complete=complete,
    )
    return Registered(registration.digest, registration.date, tuple(found))

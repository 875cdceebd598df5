"""How the values of arms were chosen: a row for each search, with its trials."""

from collections.abc import Sequence

from moebench.plans import Plan, Searched
from moebench.records import printable
from moebench.report.infer.arms import Table
from moebench.report.show.blocks import Grid

OUTER = 0.1  # share of a range


def grids(plans: Sequence[Plan], table: Table) -> list[Grid]:
    """The searches that chose values of a table's arms, in the order of their plan."""
    runs = {run for arm in table.arms for run in arm.runs.values()}
    searches = [
        search
        for plan in plans
        if any(job.run in runs for job in plan.jobs)
        for search in plan.searches
    ]
    rows = []
    for search in dict.fromkeys(searches):
        first, *others = map(printable, search.arms)
        failed = f"{search.failed} failed" if search.failed else ""
        about = f"of {' '.join(search.ranges)}"
        if ends := _at_ends(search):
            about += f"; {' and '.join(ends)} near an end"
        rows.append(
            [
                (first, f"also {', '.join(others)}" if others else ""),
                (str(search.trials), failed),
                (printable(search.values), printable(about)),
                (f"{search.result:.4f}", ""),
            ]
        )
    if not rows:
        return []
    seeds = [seed for search in searches for seed in search.seeds]
    first, last = min(seeds), max(seeds)
    told = f"seeds {first} to {last}" if last > first else f"seed {first}"
    return [
        Grid(
            title="Trials",
            caption="Values were chosen by the lowest mean tune/nats of an arm's trials, on "
            f"{told} and the tune half of the validation documents, neither of which is reported. "
            "It flatters: it is the best of the trials. Near an end: in the outer tenth of its "
            "range, so that a wider one may hold better values.",
            headers=["arm", "trials", "values", "best\ntune/nats"],
            rows=rows,
        )
    ]


def _at_ends(search: Searched) -> list[str]:
    """The keys whose values lie in the outer tenth of their ranges."""
    shares = search.shares(search.ranges, search.values)
    return [key for key, share in shares.items() if min(share, 1 - share) < OUTER]

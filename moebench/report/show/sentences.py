"""Sentences made from the numbers alone: what they can and cannot tell.

A verdict is given on the primary endpoint only. Load and specialisation are said to differ where
all paired differences have one sign; that describes these runs and tests nothing.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

from moebench.catalogue import METRICS, find
from moebench.plans import PRIMARY
from moebench.report.infer.arms import Arm, Table
from moebench.report.infer.decisions import SHOWS, Decision
from moebench.report.infer.metrics import ArmMetric
from moebench.report.infer.statistics import (
    FEWEST_SEEDS,
    Comparison,
    seeds_needed,
)
from moebench.report.paper.findings import PAPER_TOKENS, paper_gap, paper_gaps
from moebench.report.show.numbers import (
    as_percent,
    count_range,
    four_decimals,
    interval,
    listed,
    p_value,
)

MORE_SEEDS = "more than 10,000"
MOST_PAIRS = 6  # sentences on runs that are no pairs; more are counted


def lead(table: Table) -> str:
    """What is compared, for a reader who sees such a page for the first time."""
    number = len(table.arms)
    runs = sum(len(arm.runs) for arm in table.arms)
    arms = "One arm, a way" if number == 1 else f"{number} arms, each a way"
    seeds = _seeds(sorted({seed for arm in table.arms for seed in arm.seeds}))
    steps = f" of {count_range(table.steps)} steps" if table.steps else ""
    text = f"{arms} to balance the router, with {seeds}: {runs} run{'s' * (runs != 1)}{steps}."
    if number == 1:
        return text
    return (
        f"{text} Runs of one seed see the same text from the same initial weights, and differences "
        f"are between them: an arm's less that of {control(table)}."
    )


def interim(table: Table) -> str:
    """That a study has not ended, and what is compared meanwhile; "" if it has."""
    found = table.interim
    if found is None:
        return ""
    left = ", ".join(f"{count} {state}" for state, count in found.left.items())
    text = f"Interim: the study has not ended ({left}). "
    if found.step is None:
        text += "Its arms share no evaluation yet: this is what is finished."
    elif found.step == found.steps:
        text += f"Compared at the end of {_seeds(found.seeds)}"
    else:
        of = f" of {found.steps:,}" if found.steps else ""
        which = "as asked," if found.chosen else "the last evaluation that all arms share"
        text += f"Compared at step {found.step:,}{of}, {which} in {_seeds(found.seeds)}"
    if found.step is not None:
        missed = "ended" if found.chosen else "come so far"
        late = f"; {_seeds(found.waiting)} {_have(found.waiting)} not {missed}"
        text += late * bool(found.waiting) + "."
    return text + " No p values and no verdicts before the end."


def _have(seeds: Sequence[int]) -> str:
    return "has" if len(seeds) == 1 else "have"


def verdicts(table: Table) -> list[str]:
    """One sentence an arm on the primary endpoint, and one on what the seeds allow."""
    compared = table.comparisons.arms
    text = [
        f"{arm.name}: {_verdict(arm.name, table, compared.get(arm.name))}."
        for arm in table.arms
        if arm.name != table.baseline
    ]
    if not text:
        return ["There is one arm: nothing to compare it with."]
    shared = {len(comparison.per_seed) for comparison in compared.values()}
    if 1 in shared:
        text.append("One pair of runs shows no uncertainty: its difference is no finding.")
    if 2 in shared and not table.comparisons.family:
        text.append(
            "Two seeds leave one degree of freedom, too few for an interval: "
            "their differences are no finding."
        )
    return [*text, *_basis(table)]


def _basis(table: Table) -> Iterable[str]:
    """What verdicts rest on, or why there are none; and what the grid's intervals are."""
    if table.no_verdict:
        yield f"No verdict{' yet' * bool(table.too_early)}: {table.no_verdict}."
    elif all(len(c.per_seed) < table.fewest for c in table.comparisons.arms.values()):
        yield f"A verdict takes {table.fewest} seeds. Until then, these differences describe."
    elif table.order and table.primary == PRIMARY:
        yield (
            "Verdicts rest on the paired t, in the order of findings that the study declares: each "
            f"is tested at {as_percent(table.level)}, and only if the one before was decided. All "
            "else is described."
        )
    else:
        yield (
            "Verdicts rest on the paired t; their p values are adjusted by Holm's method for all "
            "comparisons of this table, those of the findings included."
        )
    intervals = [comparison.adjusted for comparison in table.comparisons.arms.values()]
    if sum(interval.low is not None for interval in intervals) > 1:
        yield (
            f"The intervals below the differences hold for all {table.comparisons.family} "
            f"comparisons with {table.baseline} together, at 95 %, and describe."
        )


def _verdict(name: str, table: Table, comparison: Comparison | None) -> str:
    base, unit = _to(name, table), _unit(table.primary)
    lacking = [arm for arm in (name, table.baseline) if table.primary not in table.arm(arm).metrics]
    if lacking:
        return f"cannot tell: no run of {listed(lacking)} holds {table.primary}"
    if comparison is None:
        return f"cannot tell: it shares no finished seed with {base}"
    decision = table.decisions.get(name)
    alone, per_seed = comparison.paired or comparison.adjusted, comparison.per_seed
    if alone.low is None or alone.high is None:
        seeds = _seeds(list(per_seed))
        if not any(per_seed.values()):
            return f"equals {base} in {seeds}"
        values = ", ".join(map(four_decimals, per_seed.values()))
        return f"cannot tell: {values}{unit} against {base} in {seeds}"
    about = f"{interval(alone.low, alone.high)}{unit}"
    if decision is None or decision.p is None:
        why = decision.withheld if decision and not table.no_verdict else ""
        told = f" ({why})" if why else ""
        return f"no verdict{told}: difference {four_decimals(alone.value)}, paired t {about}"
    p, shows = p_value(decision.p), _shows(decision)
    if not decision.decided:
        return (
            f"cannot tell: difference {four_decimals(alone.value)}, paired t {about}, "
            f"adjusted {p}{shows}"
        )
    direction = "lower" if alone.value < 0 else "higher"
    return (
        f"{table.primary} is {direction} than {base}'s by {abs(alone.value):.4f}{unit} "
        f"(paired t {interval(alone.low, alone.high)}, adjusted {p}{shows})"
    )


def _to(name: str, table: Table) -> str:
    """What an arm is compared with; an A/A arm that is a part of the control, with the baseline."""
    return table.baseline if name in table.control else control(table)


def control(table: Table) -> str:
    """What differences are to, in words."""
    return f"the mean of {listed(table.control)}" if len(table.control) > 1 else table.baseline


def _shows(decision: Decision) -> str:
    """Whether the treatment shows in the load, after a semicolon; "" where it need not."""
    if decision.treatment is None:
        return ""
    size = f"MaxVio micro differs by {decision.treatment:.1f} between-seed deviations"
    null = not decision.decided and decision.treatment < SHOWS
    return f"; {'the treatment did not take: ' * null}{size}"


def limits(table: Table) -> list[str]:
    """The smallest difference that shows, beside the paper's effect; and how short the runs are."""
    text, resolved = [], table.comparisons.resolved
    if resolved is not None:
        text.append(
            f"These runs resolve differences of {resolved:.4f}{_unit(table.primary)} and more "
            "(half of the widest adjusted interval); smaller ones they cannot tell from 0."
        )
        text += _seeds_for_the_paper(table, resolved)
    if table.tokens and table.tokens[1] > 0:
        times = PAPER_TOKENS / table.tokens[1]
        ends = (table.step, table.step) if table.step is not None else table.steps
        steps = f" in {count_range(ends)} steps" if ends else ""
        text.append(
            f"Each run saw {count_range(table.tokens)} tokens{steps}; the paper's runs saw 120 "
            f"billion, {float(f'{times:.2g}'):,.0f} times as many. What shows early need not last."
        )
    return text


def _seeds_for_the_paper(table: Table, resolved: float) -> list[str]:
    """How many seeds would show the paper's gap, where the runs allow a guess."""
    sd, gaps = table.comparisons.sd, paper_gaps(table.bytes_per_token)
    if sd is None or gaps is None:
        return []
    needed = [seeds_needed(sd, table.comparisons.family, gap) for gap in gaps]
    counts = [f"{seeds:,}" if seeds else MORE_SEEDS for seeds in needed]
    about = counts[0] if counts[0] == MORE_SEEDS else f"about {counts[0]}"
    over = f"{counts[1]} to {counts[2]} over that range; " if counts[1] != counts[2] else ""
    comparison = "less" if gaps[0] < resolved else "more"
    bytes_alone = math.isclose(table.bytes_per_token or 0, 1, rel_tol=0.01)
    unit = "byte" if bytes_alone else "token of these runs"
    return [
        f"The paper's micro-to-global gap, ln(8.167 / 8.038) = {paper_gap():.4f} nats a token, "
        f"is about {gaps[0]:.4f} nats a {unit} (assumed: 4 bytes a token; {gaps[2]:.4f} at 5, "
        f"{gaps[1]:.4f} at 3), {comparison} than that. To show it in four of five studies takes "
        f"{about} seeds ({over}approximate)."
    ]


def load(table: Table) -> list[str]:
    """What differs from the baseline in load and specialisation in every seed."""
    text, fewest = [], 0
    for arm in table.arms:
        measured = any(
            metric.difference is not None
            for name, metric in arm.metrics.items()
            if name.startswith(("load/", "specialization/"))
        )
        if not measured:
            continue
        claims = list(_claims(arm, table))
        seeds = len(set(arm.seeds) & set(table.arm(table.baseline).seeds))
        if claims:
            every = "in the one shared seed" if seeds == 1 else f"in every one of {seeds} seeds"
            text.append(f"{arm.name} {listed(claims)}, {every}.")
            fewest = min(fewest or seeds, seeds)
        else:
            text.append(
                f"{arm.name}: load and specialisation differ from {table.baseline}'s "
                "in no direction common to all seeds."
            )
    if fewest:
        odds = f"{fewest} seeds have one sign in 1 case of {2 ** (fewest - 1):,}"
        chance = odds if fewest > 1 else "one seed always agrees with itself"
        text.append(f"This describes these runs and tests nothing: by chance alone, {chance}.")
    return text


def _claims(arm: Arm, table: Table) -> Iterable[str]:
    """Phrases on the metrics that the catalogue gives one, where the runs support it."""
    baseline = table.arm(table.baseline).metrics
    for name, metric in METRICS.items():
        mine, base = arm.metrics.get(name), baseline.get(name)
        claim = metric.claim
        if claim is None or mine is None or base is None or not _same_direction(mine, base):
            continue
        if claim.values.format(mine.mean, 0) == claim.values.format(base.mean, 0):
            continue  # a difference too small to print
        phrase = claim.more if (mine.difference or 0) > 0 else claim.less
        yield f"{phrase} ({claim.values.format(mine.mean, base.mean)})"


def _same_direction(mine: ArmMetric, base: ArmMetric) -> bool:
    """One sign in all shared seeds, which the means over all seeds do not contradict."""
    if mine.mean is None or base.mean is None or mine.difference is None:
        return False
    return mine.same_sign and (mine.mean - base.mean) * mine.difference > 0


def cautions(table: Table, *, pooled: bool = True) -> list[str]:
    """What a reader must know before trusting the numbers above.

    Args:
        pooled: whether these include the intervals for all arms together, which an arm can leave.
    """
    text = []
    if table.baseline_missing is not None:
        text.append(
            f"{table.baseline_missing} has no finished run in this table; "
            f"its differences are to {table.baseline}."
        )
    if table.twin_close is not None:
        text.append(
            f"{table.twin_close} has not parted from {table.baseline}: differences are to "
            f"{table.baseline} alone."
        )
    text += table.unpaired[:MOST_PAIRS]
    if (more := len(table.unpaired) - MOST_PAIRS) > 0:
        text.append(f"{more} more like these of runs that are no pairs: --json has all.")
    for name, variance in table.comparisons.odd.items():
        why = (
            "its runs vary clearly more than those of the other arms"
            if variance == "more"
            else f"it keeps clearly closer to {table.baseline} than the other arms do"
        )
        text.append(f"{name}: {why} (F test at 0.1 %){_consequence(name, table) * pooled}.")
    if len({arm.seeds for arm in table.arms}) > 1:
        text.append(
            "Not every arm has every seed: differences are between runs of one seed, and need "
            "not equal the differences of the means."
        )
    for key, values in table.mixed.items():
        text.append(f"The runs differ in {key}: {', '.join(values)}.")
    return text


def _unit(name: str) -> str:
    """What follows a number of a metric, with a blank; "" if it has no unit."""
    metric = find(name)
    return f" {metric.unit}" if metric and metric.unit not in ("", "share") else ""


def _consequence(name: str, table: Table) -> str:
    """What follows for an arm whose variance is unequal to that of the others.

    Verdicts are left as they are: they rest on the paired t of each arm.
    """
    if name == table.baseline:
        return (
            "; as it is the baseline, the intervals below the differences are not pooled: each is "
            "that of the arm's own pairs"
        )
    if len(table.comparisons.arms[name].per_seed) < FEWEST_SEEDS:
        return "; it left the pool"
    return "; the interval below its difference is not pooled: it is that of its own pairs"


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    consecutive = len(seeds) > 3 and all(b - a == 1 for a, b in pairwise(seeds))
    if consecutive:
        return f"seeds {seeds[0]} to {seeds[-1]}"
    return f"seeds {listed(list(map(str, seeds)))}"

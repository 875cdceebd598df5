"""What the numbers can and cannot tell, in sentences made from the numbers alone.

A verdict is given on the primary endpoint only. Load and specialisation are said to differ where
all paired differences have one sign; that is a description of these runs, not a test.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from moebench.report.infer.arms import Arm, Described, Table
from moebench.report.infer.statistics import FEWEST_SEEDS, Comparison, seeds_needed
from moebench.report.paper.findings import BYTES, PAPER_TOKENS, paper_gap

MORE_SEEDS = "more than 10,000"


def lead(table: Table) -> str:
    """What is compared, for a reader who sees such a page for the first time."""
    runs = sum(len(arm.runs) for arm in table.arms)
    arms = (
        "One arm, a way to balance the router"
        if len(table.arms) == 1
        else (f"{len(table.arms)} arms, each a way to balance the router")
    )
    seeds = _seeds(dict.fromkeys(sorted({seed for arm in table.arms for seed in arm.seeds}), 0.0))
    steps = f" of {_span(table.steps)} steps" if table.steps else ""
    told = f"{arms}, with {seeds}: {runs} run{'s' * (runs != 1)}{steps}."
    if len(table.arms) == 1:
        return told
    return (
        f"{told} Runs of one seed see the same text from the same initial weights, and differences "
        f"are between them: an arm's less that of {table.baseline}."
    )


def verdicts(table: Table) -> list[str]:
    """One sentence an arm on the primary endpoint, and one on what the seeds allow."""
    unit = unit_of(table.primary)
    told = [
        _verdict(arm.name, table, table.comparisons.arms.get(arm.name), unit)
        for arm in table.arms
        if arm.name != table.baseline
    ]
    if not told:
        return ["There is one arm: nothing to compare it with."]
    shared = {len(each.per_seed) for each in table.comparisons.arms.values()}
    if 1 in shared:
        told.append("One pair of runs shows no uncertainty: its difference is no finding.")
    if 2 in shared and not table.comparisons.family:
        told.append(
            "Two seeds leave one degree of freedom, too few for an interval: "
            "their differences are no finding."
        )
    if sum(each.adjusted.low is not None for each in table.comparisons.arms.values()) > 1:
        told.append(
            f"Intervals and p values of {table.primary} hold for all {table.comparisons.family} "
            f"comparisons with {table.baseline} together, at 95 %."
        )
    return told


def _verdict(name: str, table: Table, comparison: Comparison | None, unit: str) -> str:
    base = table.baseline
    lacking = [arm for arm in (name, base) if table.primary not in table.arm(arm).metrics]
    if lacking:
        return f"{name}: cannot tell: no run of {_listed(lacking)} holds {table.primary}."
    if comparison is None:
        return f"{name}: cannot tell: it shares no finished seed with {base}."
    adjusted, each = comparison.adjusted, comparison.per_seed
    if adjusted.low is None or adjusted.high is None:
        if not any(each.values()):
            return f"{name}: equals {base} in {_seeds(each)}."
        values = ", ".join(signed(value) for value in each.values())
        return f"{name}: cannot tell: {values}{unit} against {base} in {_seeds(each)}."
    interval = f"{signed(adjusted.low)} to {signed(adjusted.high)}"
    p = f", adjusted {p_value(adjusted.p)}" if adjusted.p is not None else ""
    beside = ""
    paired = comparison.paired
    if paired and paired.low is not None and paired.high is not None and not comparison.left_pool:
        own = f", {p_value(paired.p)}" if paired.p is not None else ""
        beside = f"; paired t alone {signed(paired.low)} to {signed(paired.high)}{own}"
    if adjusted.low <= 0 <= adjusted.high:
        return (
            f"{name}: cannot tell: the interval {interval}{unit} includes 0 "
            f"(difference {signed(adjusted.value)}{p}{beside})."
        )
    way = "lower" if adjusted.value < 0 else "higher"
    return (
        f"{name}: {table.primary} is {way} than {base}'s by {abs(adjusted.value):.4f}{unit} "
        f"(interval of the difference {interval}{p}{beside})."
    )


def paper_gap_here(table: Table) -> tuple[float, ...] | None:
    """The paper's micro less global in nats a token of these runs, at 4, 3 and 5 bytes a token
    there, which are assumed; None where these runs do not tell their own."""
    own = table.bytes_per_token
    return tuple(paper_gap() / each * own for each in BYTES) if own else None


def limits(table: Table) -> list[str]:
    """The smallest difference that shows, the paper's effect beside it, and how little was seen."""
    told = []
    found, unit = table.comparisons, unit_of(table.primary)
    if found.resolved is not None:
        told.append(
            f"These runs resolve differences of {found.resolved:.4f}{unit} and more "
            "(half of the widest adjusted interval); smaller ones they cannot tell from 0."
        )
    gaps = paper_gap_here(table)
    if found.sd is not None and found.resolved is not None and gaps:
        needed = [seeds_needed(found.sd, found.family, gap) for gap in gaps]
        counts = [f"{each:,}" if each else MORE_SEEDS for each in needed]
        about = counts[0] if counts[0] == MORE_SEEDS else f"about {counts[0]}"
        over = f"{counts[1]} to {counts[2]} over that range; " if counts[1] != counts[2] else ""
        way = "less" if gaps[0] < found.resolved else "more"
        per = (
            "byte"
            if math.isclose(table.bytes_per_token or 0, 1, rel_tol=0.01)
            else "token of these runs"
        )
        told.append(
            f"The paper's micro-to-global gap, ln(8.167 / 8.038) = {paper_gap():.4f} nats a token, "
            f"is about {gaps[0]:.4f} nats a {per} (assumed: 4 bytes a token; {gaps[2]:.4f} at 5, "
            f"{gaps[1]:.4f} at 3), {way} than that. To show it in four of five studies takes "
            f"{about} seeds ({over}approximate)."
        )
    if table.tokens and table.tokens[1] > 0:
        seen = PAPER_TOKENS / table.tokens[1]
        steps = f" in {_span(table.steps)} steps" if table.steps else ""
        told.append(
            f"Each run saw {_span(table.tokens)} tokens{steps}; the paper's runs saw 120 billion, "
            f"{float(f'{seen:.2g}'):,.0f} times as many. What shows early need not last."
        )
    return told


def load(table: Table) -> list[str]:
    """What differs from the baseline in load and specialisation in every seed."""
    told, fewest = [], 0
    for arm in table.arms:
        measured = any(
            each.difference is not None
            for name, each in arm.metrics.items()
            if name.startswith(("load/", "specialization/"))
        )
        if not measured:
            continue
        claims = [claim for claim in (make(arm, table) for make in _CLAIMS) if claim]
        seeds = len(set(arm.seeds) & set(table.arm(table.baseline).seeds))
        if claims:
            every = "in the one shared seed" if seeds == 1 else f"in every one of {seeds} seeds"
            told.append(f"{arm.name} {_listed(claims)}, {every}.")
            fewest = min(fewest or seeds, seeds)
        else:
            told.append(
                f"{arm.name}: load and specialisation differ from {table.baseline}'s "
                "in no direction common to all seeds."
            )
    if fewest:
        odds = f"{fewest} seeds have one sign in 1 case of {2 ** (fewest - 1):,}"
        chance = odds if fewest > 1 else "one seed always agrees with itself"
        told.append(f"This describes these runs and tests nothing: by chance alone, {chance}.")
    return told


def _claim(metric: str, less: str, more: str, shown: str) -> Callable[[Arm, Table], str | None]:
    """What makes a phrase on one metric, or none where the runs do not support it."""

    def make(arm: Arm, table: Table) -> str | None:
        mine, base = arm.metrics.get(metric), table.arm(table.baseline).metrics.get(metric)
        if mine is None or base is None or not _supported(mine, base):
            return None
        if shown.format(mine.mean, 0) == shown.format(base.mean, 0):
            return None  # a difference too small to print
        words = more if (mine.difference or 0) > 0 else less
        return f"{words} ({shown.format(mine.mean, base.mean)})"

    return make


def _supported(mine: Described, base: Described) -> bool:
    """One sign in all shared seeds, which the means over all seeds do not contradict."""
    if mine.mean is None or base.mean is None or mine.difference is None:
        return False
    return mine.every_seed and (mine.mean - base.mean) * mine.difference > 0


_CLAIMS = (
    _claim(
        "load/max_vio_micro",
        "keeps micro-batches more even",
        "lets micro-batches be less even",
        "MaxVio micro {:.2f} against {:.2f}",
    ),
    _claim(
        "load/max_vio_global",
        "keeps the validation set more even",
        "leaves the validation set less even",
        "MaxVio global {:.2f} against {:.2f}",
    ),
    _claim(
        "load/dead_experts",
        "leaves fewer experts dead",
        "leaves more experts dead",
        "{:.1f} against {:.1f}",
    ),
    _claim(
        "specialization/domain",
        "specialises less",
        "specialises more",
        "{:.3f} against {:.3f} bits",
    ),
)


def cautions(table: Table) -> list[str]:
    """What a reader must know before trusting the numbers above."""
    told = []
    if table.baseline_missing is not None:
        told.append(
            f"{table.baseline_missing} has no finished run in this table; "
            f"its differences are to {table.baseline}."
        )
    told += table.unpaired
    for name, way in table.comparisons.odd.items():
        fate = (
            "as it is the baseline, nothing is pooled, and each arm is compared by its own paired t"
            if name == table.baseline
            else "it left the pool"
            + (
                " and is compared by its own paired t"
                if len(table.comparisons.arms[name].per_seed) >= FEWEST_SEEDS
                else ""
            )
        )
        how = (
            "its runs vary clearly more than those of the other arms"
            if way == "more"
            else f"it keeps clearly closer to {table.baseline} than the other arms do"
        )
        told.append(f"{name}: {how} (F test at 0.1 %); {fate}.")
    if len({arm.seeds for arm in table.arms}) > 1:
        told.append(
            "Not every arm has every seed: differences are between runs of one seed, and need "
            "not equal the differences of the means."
        )
    for key, values in table.mixed.items():
        told.append(f"The runs differ in {key}: {', '.join(values)}.")
    return told


def unit_of(metric: str) -> str:
    """What follows a number of that metric, with a blank; "" if it has no unit."""
    return " nats" if metric.split("/")[1:2] == ["nats"] else ""


def signed(value: float) -> str:
    """Four decimals; a negative number that rounds to 0 loses its sign."""
    return f"{round(value, 4) + 0.0:.4f}"


def p_value(p: float | None) -> str:
    if p is None:
        return ""
    return "p < 0.001" if p < 0.001 else f"p {p:.3f}" if p < 0.1 else f"p {p:.2f}"


def _span(values: tuple[float, float]) -> str:
    low, high = (
        f"{value / 1e6:.1f} million" if value >= 1e6 else f"{value:,.0f}" for value in values
    )
    return low if low == high else f"{low} to {high}"


def _seeds(per_seed: dict[int, float]) -> str:
    seeds = list(per_seed)
    run = len(seeds) > 3 and all(b - a == 1 for a, b in pairwise(seeds))
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    return (
        f"seeds {seeds[0]} to {seeds[-1]}" if run else f"seeds {_listed([str(s) for s in seeds])}"
    )


def _listed(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)

"""The arms of one table: their means over seeds, and their differences to the baseline.

Only the primary endpoint is tested (`statistics.compare`). Every other metric is described: by the
mean over the arm's seeds and by the mean of its paired differences, each with Student's t and no
adjustment. A perplexity is the exponential of its mean nats, never a mean of perplexities.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from moebench.report.frame import MADE_WITH, SCOPES, Frame
from moebench.report.plan import PRIMARY, Plan
from moebench.report.statistics import Comparisons, Estimate, compare, mean_interval

EXPONENTIAL = re.compile(r"(?P<split>\w+)/ppl(?P<domain>/.*)?")


@dataclass(frozen=True)
class Described:
    """A metric of an arm; intervals are of 95 %, None where the seeds do not allow one.

    Attributes:
        n: seeds with a value.
        mean, low, high: over those seeds.
        difference, difference_low, difference_high: to the baseline, in the metric's unit.
        p: adjusted for the number of arms; of the primary endpoint only.
        every_seed: whether the paired differences of all shared seeds have one sign.
    """

    n: int
    mean: float | None
    low: float | None = None
    high: float | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    p: float | None = None
    every_seed: bool = False


@dataclass(frozen=True)
class Arm:
    """One arm: its finished seeds, the size of its balance group and its metrics by name."""

    name: str
    seeds: tuple[int, ...]
    sequences: float | None
    group_tokens: float | None
    metrics: dict[str, Described]


@dataclass(frozen=True)
class Table:
    """Arms that may be compared, the baseline first.

    Attributes:
        differs: the keys in which this table differs from the report's others, with its values.
        baseline, primary: an arm's name, a metric's name.
        baseline_missing: a baseline that was asked for and is no arm of this table.
        comparisons: of the primary endpoint.
        random: MaxVio of random routing, smallest and largest over the runs, by scope.
        tokens, steps: that a run saw, smallest and largest.
        made_with: versions and devices of which the runs have more than one.
    """

    differs: dict[str, Any]
    arms: tuple[Arm, ...]
    baseline: str
    primary: str
    comparisons: Comparisons
    baseline_missing: str | None = None
    random: dict[str, tuple[float, float]] = field(default_factory=dict)
    tokens: tuple[float, float] | None = None
    steps: tuple[float, float] | None = None
    made_with: dict[str, list[str]] = field(default_factory=dict)

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)


def make_table(frame: Frame, index: int, plans: Sequence[Plan], baseline: str | None) -> Table:
    """One of the frame's tables, which must hold a finished run.

    The baseline is, in this order: the given one, the one of the plans that name these runs if
    they agree, `micro`, the first arm. Arms come in the order of the plans, then by group size.
    """
    runs = frame.runs[(frame.runs["table"] == index) & (frame.runs["state"] == "done")]
    metrics = frame.metrics[frame.metrics["table"] == index]
    names = set(runs["run"])
    plans = [plan for plan in plans if any(run.run in names for run in plan.runs)]
    order = _ordered(runs, plans)
    chosen = baseline if baseline in order else _baseline(order, plans)
    order = {chosen: order.pop(chosen), **order}
    primary = plans[0].primary if len({plan.primary for plan in plans}) == 1 else PRIMARY

    values = {
        str(name): each.pivot(index="seed", columns="arm", values="value")
        for name, each in metrics.groupby("metric", sort=True)
    }
    comparisons = Comparisons({}, {})
    if primary in values and chosen in values[primary]:
        ranked = [arm for arm in order if arm in values[primary]]
        comparisons = compare(values[primary][ranked], chosen)
    arms = []
    for name in order:
        mine = runs[runs["arm"] == name]
        described = {
            metric: _described(each, name, chosen)
            for metric, each in values.items()
            if name in each
        }
        if primary in described:
            described[primary] = _with_test(described[primary], comparisons, name)
        arms.append(
            Arm(
                name=name,
                seeds=tuple(sorted(int(seed) for seed in mine["seed"])),
                sequences=_first(mine["sequences"]),
                group_tokens=_first(mine["group_tokens"]),
                metrics=described,
            )
        )
    reference = arms[0].metrics
    for arm in arms:
        arm.metrics.update(_perplexities(arm.metrics, reference, primary))
    ranges = {scope: _range(runs[f"random_{scope}"]) for scope in SCOPES}
    return Table(
        differs=_differing(frame, index),
        arms=tuple(arms),
        baseline=chosen,
        primary=primary,
        comparisons=comparisons,
        baseline_missing=baseline if baseline is not None and baseline != chosen else None,
        random={scope: each for scope, each in ranges.items() if each},
        tokens=_range(runs["tokens"]),
        steps=_range(runs["steps"]),
        made_with=_mixed(runs),
    )


def _ordered(runs: pd.DataFrame, plans: Sequence[Plan]) -> dict[str, str]:
    """The arms' hashes by name, in order of the plans, of group size and of name."""
    planned = list(dict.fromkeys(each for plan in plans for each in plan.arm_hashes()))
    rank = {arm_hash: i for i, arm_hash in enumerate(planned)}
    arms = runs.drop_duplicates("arm")[["arm", "arm_hash", "sequences"]].itertuples(index=False)

    def key(arm: Any) -> tuple[float, bool, float, str]:
        unknown = pd.isna(arm.sequences)
        size = 0.0 if unknown else float(arm.sequences)
        return rank.get(arm.arm_hash, math.inf), unknown, size, arm.arm

    return {str(arm.arm): str(arm.arm_hash) for arm in sorted(arms, key=key)}


def _baseline(order: Mapping[str, str], plans: Sequence[Plan]) -> str:
    names = {arm_hash: name for name, arm_hash in order.items()}
    planned = {plan.baseline_hash() for plan in plans}
    if len(planned) == 1 and (found := planned.pop()) in names:
        return names[str(found)]
    return "micro" if "micro" in order else next(iter(order))


def _described(values: pd.DataFrame, name: str, baseline: str) -> Described:
    own = values[name].dropna().to_numpy(float)
    mean = mean_interval(own)
    plain = Described(len(own), mean.value, mean.low, mean.high)
    if name == baseline or baseline not in values:
        return plain
    paired = (values[name] - values[baseline]).dropna().to_numpy(float)
    if not len(paired):
        return plain
    return Described(
        *(len(own), mean.value, mean.low, mean.high),
        *_ends(mean_interval(paired)),
        every_seed=bool(np.all(paired > 0) or np.all(paired < 0)),
    )


def _ends(each: Estimate) -> tuple[float, float | None, float | None]:
    return each.value, each.low, each.high


def _with_test(described: Described, comparisons: Comparisons, name: str) -> Described:
    if name not in comparisons.arms:
        return described
    adjusted = comparisons.arms[name].adjusted
    return Described(
        *(described.n, described.mean, described.low, described.high),
        *_ends(adjusted),
        p=adjusted.p,
        every_seed=described.every_seed,
    )


def _perplexities(
    mine: Mapping[str, Described], reference: Mapping[str, Described], primary: str
) -> dict[str, Described]:
    """`*/ppl*` from `*/nats*`: exp of means and ends; differences as seen from the baseline's."""
    made = {}
    for name, plain in mine.items():
        found = EXPONENTIAL.fullmatch(name)
        nats_name = f"{found['split']}/nats{found['domain'] or ''}" if found else ""
        if name == primary or nats_name not in mine:
            continue
        nats = mine[nats_name]
        base = _exp(reference[nats_name].mean) if nats_name in reference else None

        def change(difference: float | None, base: float | None = base) -> float | None:
            ratio = percent(difference)
            return None if ratio is None or base is None else base * ratio / 100

        made[name] = Described(
            *(nats.n, _exp(nats.mean), _exp(nats.low), _exp(nats.high)),
            *map(change, (nats.difference, nats.difference_low, nats.difference_high)),
            every_seed=plain.every_seed,
        )
    return made


def percent(difference: float | None) -> float | None:
    """A difference in nats as percent of perplexity, 100 (exp(d) - 1)."""
    small = difference is not None and abs(difference) < 700
    return 100 * math.expm1(difference) if small else None


def _exp(nats: float | None) -> float | None:
    return math.exp(nats) if nats is not None and abs(nats) < 700 else None


def _first(values: pd.Series) -> float | None:
    known = values.dropna()
    return float(known.iloc[0]) if len(known) else None


def _range(values: pd.Series) -> tuple[float, float] | None:
    known = values.dropna()
    return (float(known.min()), float(known.max())) if len(known) else None


def _differing(frame: Frame, index: int) -> dict[str, Any]:
    keys = frame.tables[index]
    return {
        key: keys.get(key)
        for key in dict.fromkeys(key for table in frame.tables for key in table)
        if any(table.get(key) != keys.get(key) for table in frame.tables)
    }


def _mixed(runs: pd.DataFrame) -> dict[str, list[str]]:
    found = {
        key: sorted({each[i] for each in runs["made_with"]}) for i, key in enumerate(MADE_WITH)
    }
    return {key: values for key, values in found.items() if len(values) > 1}

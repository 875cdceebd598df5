"""The arms of one table: their means over seeds, and their differences to the baseline.

Only the primary endpoint has intervals for all arms at once (`statistics.py`), and p values, which
`moebench.report.paper.judge` adds. Every other metric is described (`metrics.py`).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from moebench.plans import PRIMARY, SECONDARY, Plan
from moebench.registration import Registration
from moebench.report.infer.decisions import LEVEL, Decision, too_early
from moebench.report.infer.metrics import ArmMetric, control_of, describe
from moebench.report.infer.pairing import other_batches, other_starts
from moebench.report.infer.registered import Registered, registered
from moebench.report.infer.statistics import (
    VERDICT_SEEDS,
    Comparisons,
    by_seed,
    compare,
    odd_arms,
)
from moebench.report.infer.stopping import Rule, rule_of
from moebench.report.read.frame import Frame
from moebench.report.read.interim import Interim
from moebench.report.read.run import SCOPES
from moebench.step_costs import Cost

BITS, PERTURB = "valid/bits_per_byte", "router.perturb"
CONTROLS = ("data.homogeneity", PERTURB)
"""Keys of control arms: frontiers and findings leave them out unless a finding names the key."""
UNFINISHED = "the study has not ended"
Value = TypeVar("Value")


@dataclass(frozen=True)
class Arm:
    """One arm of a table.

    Attributes:
        name, arm_hash: of the treatment.
        seeds: the finished ones.
        sequences, group_tokens: size of its balance group; None where it is not fixed.
        metrics: by name.
        science: every key that can change a result and is not at its neutral value.
        runs: names of the finished runs, by seed.
        unfinished: number of the other runs, by state.
        per_seed: values by metric and seed.
        cost: seconds a step, timed alone; None where nobody timed it.
    """

    name: str
    arm_hash: str
    seeds: tuple[int, ...]
    sequences: float | None
    group_tokens: float | None
    metrics: dict[str, ArmMetric]
    science: dict[str, Any] = field(default_factory=dict)
    runs: dict[int, str] = field(default_factory=dict)
    unfinished: dict[str, int] = field(default_factory=dict)
    per_seed: dict[str, dict[int, float]] = field(default_factory=dict)
    cost: Cost | None = None


@dataclass(frozen=True)
class Table:
    """Arms that may be compared, the baseline first.

    Attributes:
        differs: the keys in which this table differs from the report's others, with its values.
        baseline, primary: an arm's name, a metric's name.
        baseline_missing: a baseline that was asked for but is no arm of this table.
        comparisons: of the primary endpoint.
        order: names of the findings in which the study tests; empty for Holm's method.
        too_early: why no verdict can be given yet; "" if one can.
        secondary: names of the secondary endpoints that the study declares.
        decisions: about each arm's difference in the primary endpoint, by the arm's name.
        secondary_decisions: the same by secondary endpoint; without those that no run measured.
        control: what differences are to: the baseline, and its A/A twin if the mean of both.
        twin_close: the baseline's A/A twin where the study wants the mean of both as the control
            and the twin has not parted; None otherwise.
        random: MaxVio of random routing, smallest and largest over the runs, by scope.
        tokens, steps: of a run, smallest and largest.
        step: at which runs are compared; None for their end.
        interim: where runs are compared before their study has ended; None if it has.
        mixed: versions and devices of which the runs have more than one.
        made_with: versions, devices and commits, every value of each.
        bytes_per_token: of the tokenizer on this text; None where it is not known.
        unpaired: arms that see other batches, and runs of one seed that did not begin alike.
        index: its place among the report's tables.
        rule: by which the study ends; None for one that trains all of its seeds.
        registered: the preregistration of the study; None without one.
        gains: compute-equivalent ones, by the arm's name (`tokens.py`).
    """

    differs: dict[str, Any]
    arms: tuple[Arm, ...]
    baseline: str
    primary: str
    comparisons: Comparisons
    order: tuple[str, ...] = ()
    secondary: tuple[str, ...] = ()
    too_early: str = ""
    decisions: dict[str, Decision] = field(default_factory=dict)
    secondary_decisions: dict[str, dict[str, Decision]] = field(default_factory=dict)
    control: tuple[str, ...] = ()
    twin_close: str | None = None
    baseline_missing: str | None = None
    random: dict[str, tuple[float, float]] = field(default_factory=dict)
    tokens: tuple[float, float] | None = None
    steps: tuple[float, float] | None = None
    step: int | None = None
    interim: Interim | None = None
    mixed: dict[str, list[str]] = field(default_factory=dict)
    made_with: dict[str, list[str]] = field(default_factory=dict)
    bytes_per_token: float | None = None
    unpaired: tuple[str, ...] = ()
    index: int = 0
    rule: Rule | None = None
    registered: Registered | None = None
    gains: Mapping[str, Any] = field(default_factory=dict)

    @property
    def level(self) -> float:
        """Of all verdicts of a family together."""
        return self.rule.look.level if self.rule else LEVEL

    @property
    def fewest(self) -> int:
        """Seeds that a verdict takes."""
        return self.rule.look.seeds if self.rule else VERDICT_SEEDS

    @property
    def no_verdict(self) -> str:
        """Why nothing is decided in this table; "" if something may be."""
        return self.too_early or (self.rule.void if self.rule else "")

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    def sorted_by(self, metric: str) -> "Table":
        """The baseline first, then by a metric's mean; arms without it last.

        Args:
            metric: a name; after `-`, the largest mean comes first.
        """
        name, sign = metric.removeprefix("-"), -1 if metric.startswith("-") else 1

        def key(arm: Arm) -> float:
            found = arm.metrics.get(name)
            return math.inf if found is None or found.mean is None else sign * found.mean

        first, *rest = self.arms
        return replace(self, arms=(first, *sorted(rest, key=key)))


def make_table(
    frame: Frame,
    index: int,
    plans: Sequence[Plan],
    baseline: str | None,
    interim: Interim | None = None,
    registrations: Sequence[Registration] = (),
) -> Table:
    """One of the frame's tables, which must hold a run with metrics.

    The baseline is the first of these that is an arm here: the given one, the one of the plans
    that name these runs if they agree, `micro`, the first arm. Arms come in the order of the
    plans, then by group size.
    """
    rows = list(frame.rows())
    of_table = [run for run in rows if run["table"] == index]
    measured = {*frame.metrics["run"].unique()}  # at a step, some finished runs may have no metrics
    every = [run for run in rows if run["run"] in measured]
    runs = [run for run in every if run["table"] == index]
    unfinished = [run for run in of_table if run not in runs]
    names = {run["run"] for run in runs}
    plans = [plan for plan in plans if any(job.run in names for job in plan.jobs)]
    order = _order(runs, plans)
    chosen = baseline if baseline in order else _default_baseline(order, plans)
    ranked = [chosen, *(name for name in order if name != chosen)]
    primary = _agreed([plan.primary for plan in plans], PRIMARY)

    bare = [_arm(name, runs, unfinished, plans) for name in ranked]
    averaged = _agreed([plan.average_twin for plan in plans], False)
    arms, comparisons, sides, twin = _measured(frame, index, bare, primary, averaged)
    made_with = _made_with(runs)
    ranges = {scope: _range(run[f"random_{scope}"] for run in runs) for scope in SCOPES}
    sciences = {arm.name: arm.science for arm in arms}
    return Table(
        differs=_differing(frame, index),
        arms=arms,
        baseline=chosen,
        primary=primary,
        comparisons=comparisons,
        order=_agreed([plan.order for plan in plans], ()),
        secondary=_agreed([plan.secondary for plan in plans], SECONDARY),
        too_early=UNFINISHED if interim else _too_early(frame, runs, arms),
        control=tuple(ranked[side] for side in sides),
        twin_close=ranked[twin] if twin is not None and twin not in sides else None,
        baseline_missing=baseline if baseline != chosen else None,
        random={scope: ends for scope, ends in ranges.items() if ends},
        tokens=_range(run["tokens"] for run in runs),
        steps=_range(run["steps"] for run in runs),
        step=frame.step,
        interim=interim,
        mixed={key: seen for key, seen in made_with.items() if len(seen) > 1},
        made_with=made_with,
        bytes_per_token=_bytes_per_token(arms[0], primary),
        unpaired=(*other_batches(sciences, runs), *other_starts(runs, frame.starts)),
        index=index,
        rule=rule_of(plans, {run["seed"] for run in runs}),
        registered=registered(registrations, plans, runs, every, complete=interim is None),
    )


def _measured(
    frame: Frame, index: int, bare: Sequence[Arm], primary: str, averaged: bool
) -> tuple[tuple[Arm, ...], Comparisons, list[int], int | None]:
    """The arms with their metrics, and how they compare in the primary endpoint.

    Args:
        frame, index: of the table.
        bare: its arms without metrics, the baseline first.
        primary: the name of a metric.
        averaged: whether differences are to the mean of the baseline and its A/A twin.

    Returns:
        The arms, their comparisons, the columns of the control, and that of a twin that was to be
        averaged.
    """
    names = [arm.name for arm in bare]
    seeds = sorted({seed for arm in bare for seed in arm.seeds})
    values = _matrices(frame, index, names, seeds)
    twin = _own_twin(bare) if averaged and primary in values else None
    sides = [0] if twin is None or _keeps_close(values[primary], twin) else [0, twin]
    comparisons = _compared(values.get(primary), bare, seeds, sides)
    described = describe(values, names, primary, comparisons, sides)
    arms = []
    for column, arm in enumerate(bare):
        per_seed = {key: by_seed(seeds, matrix[:, column]) for key, matrix in values.items()}
        arms.append(replace(arm, metrics=described[arm.name], per_seed=per_seed))
    return tuple(arms), comparisons, sides, twin


def _agreed(values: Sequence[Value], otherwise: Value) -> Value:
    """What all plans say, or the default where they differ."""
    return values[0] if values and all(value == values[0] for value in values) else otherwise


def _own_twin(arms: Sequence[Arm]) -> int | None:
    """The column of the baseline's A/A twin, which is equal in all but its perturbed router."""
    base = {key: value for key, value in arms[0].science.items() if key != "seed"}
    for column, arm in enumerate(arms):
        rest = {k: v for k, v in arm.science.items() if k not in ("seed", PERTURB)}
        if PERTURB in arm.science and rest == base:
            return column
    return None


def _keeps_close(values: np.ndarray, twin: int) -> bool:
    """Whether a twin has not parted from the baseline, and so is no second one."""
    return odd_arms(values).get(twin) == "less"


def _too_early(frame: Frame, runs: Sequence[Mapping[str, Any]], arms: Sequence[Arm]) -> str:
    bits: dict[int, list[float]] = {}
    for arm in arms:
        for seed, value in arm.per_seed.get(BITS, {}).items():
            bits.setdefault(seed, []).append(value)
    trigrams = [run["trigram_bits"] for run in runs]
    known = None if any(map(math.isnan, trigrams)) else min(trigrams)
    steps = _range(run["steps"] for run in runs)
    return too_early(bits, known, frame.step, steps and steps[1])


def _arm(
    name: str,
    runs: Sequence[Mapping[str, Any]],
    unfinished: Sequence[Mapping[str, Any]],
    plans: Sequence[Plan],
) -> Arm:
    """An arm without its metrics."""
    runs = [run for run in runs if run["arm"] == name]
    states = [run["state"] for run in unfinished if run["arm"] == name]
    arm_hash = runs[0]["arm_hash"]
    return Arm(
        name=name,
        arm_hash=arm_hash,
        seeds=tuple(sorted(run["seed"] for run in runs)),
        sequences=next(iter(_known(run["sequences"] for run in runs)), None),
        group_tokens=next(iter(_known(run["group_tokens"] for run in runs)), None),
        metrics={},
        science=runs[0]["science"],
        runs={run["seed"]: run["run"] for run in runs},
        unfinished={state: states.count(state) for state in sorted({*states})},
        cost=next((plan.costs[arm_hash] for plan in plans if arm_hash in plan.costs), None),
    )


def _matrices(
    frame: Frame, index: int, arms: Sequence[str], seeds: Sequence[int]
) -> dict[str, np.ndarray]:
    """The values of each metric, [seeds, arms], NaN where there is none."""
    row = {seed: i for i, seed in enumerate(seeds)}
    column = {arm: i for i, arm in enumerate(arms)}
    matrices: dict[str, np.ndarray] = {}
    metrics = frame.metrics[frame.metrics["table"] == index]
    keys = ("metric", "seed", "arm", "value")
    for metric, seed, arm, value in zip(*(metrics[key].tolist() for key in keys), strict=True):
        if metric not in matrices:
            matrices[metric] = np.full((len(seeds), len(arms)), np.nan)
        matrices[metric][row[seed], column[arm]] = value
    return dict(sorted(matrices.items()))


def _compared(
    values: np.ndarray | None, arms: Sequence[Arm], seeds: Sequence[int], control: Sequence[int]
) -> Comparisons:
    """The comparison of the primary endpoint, among the arms that have it; empty without a control.

    A twin that is a part of the control is compared with the baseline alone.
    """
    if values is None or np.isnan(values[:, 0]).all():
        return Comparisons({}, {})
    twins = {arm.name for arm in arms[1:] if PERTURB in arm.science}
    having = [i for i in range(len(arms)) if not np.isnan(values[:, i]).all()]

    def of(columns: Sequence[int], base: np.ndarray) -> Comparisons:
        shown = np.column_stack([base, values[:, columns[1:]]])
        return compare(shown, [arms[i].name for i in columns], seeds, twins)

    others = of([i for i in having if i == 0 or i not in control], control_of(values, control))
    alone = of([0, *control[1:]], values[:, 0]) if len(control) > 1 else Comparisons({}, {})
    return replace(others, arms=others.arms | alone.arms)


def _order(runs: Sequence[Mapping[str, Any]], plans: Sequence[Plan]) -> dict[str, str]:
    """The arms' hashes by name, in order of the plans, of group size and of name."""
    planned = dict.fromkeys(job.arm_hash for plan in plans for job in plan.jobs)
    rank = {arm_hash: i for i, arm_hash in enumerate(planned)}

    def key(run: Mapping[str, Any]) -> tuple[float, float, str]:
        size = math.inf if math.isnan(run["sequences"]) else run["sequences"]
        return rank.get(run["arm_hash"], math.inf), size, run["arm"]

    return {run["arm"]: run["arm_hash"] for run in sorted(runs, key=key)}


def _default_baseline(order: Mapping[str, str], plans: Sequence[Plan]) -> str:
    names = {arm_hash: name for name, arm_hash in order.items()}
    planned = {plan.baseline_hash() for plan in plans}
    if len(planned) == 1 and (arm_hash := planned.pop()) in names:
        return names[str(arm_hash)]
    return "micro" if "micro" in order else next(iter(order))


def _known(values: Iterable[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _range(values: Iterable[float]) -> tuple[float, float] | None:
    known = _known(values)
    return (min(known), max(known)) if known else None


def _differing(frame: Frame, index: int) -> dict[str, Any]:
    keys = frame.tables[index]
    return {
        key: keys.get(key)
        for key in dict.fromkeys(key for table in frame.tables for key in table)
        if any(table.get(key) != keys.get(key) for table in frame.tables)
    }


def _bytes_per_token(arm: Arm, primary: str) -> float | None:
    """The ratio of nats a token and bits a byte; None for another endpoint."""
    nats, bits = arm.metrics.get(PRIMARY), arm.metrics.get(BITS)
    if primary != PRIMARY or nats is None or bits is None or not nats.mean or not bits.mean:
        return None
    return nats.mean / (bits.mean * math.log(2))


def _made_with(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    keys = dict.fromkeys(key for run in runs for key in run["made_with"])
    return {key: sorted({run["made_with"].get(key, "?") for run in runs}) for key in keys}

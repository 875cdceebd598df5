"""The arms of one table: their means over seeds, and their differences to the baseline.

Only the primary endpoint is tested (`statistics.compare`). Every other metric is described: by the
mean over the arm's seeds and by the mean of its paired differences, with a Student's t interval
each and no adjustment. A perplexity is the exponential of mean nats, never a mean of perplexities.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from moebench.plans import PRIMARY, Cost, Plan
from moebench.report.infer.pairing import other_batches, other_starts
from moebench.report.infer.statistics import Comparisons, Estimate, compare, mean_interval
from moebench.report.read.frame import Frame
from moebench.report.read.run import SCOPES

CONTROLS = ("data.homogeneity", "router.perturb")
"""Keys of control arms: frontiers and findings leave them out unless a finding names the key."""
EXPONENTIAL = re.compile(r"(?P<split>\w+)/ppl(?P<domain>/.*)?")


@dataclass(frozen=True)
class ArmMetric:
    """A metric of an arm; intervals are of 95 %, None where the seeds do not allow one.

    Attributes:
        n: seeds with a value.
        mean, low, high: over those seeds.
        difference, difference_low, difference_high: to the baseline, in the metric's unit.
        p: adjusted for the number of arms; of the primary endpoint only.
        same_sign: whether the paired differences of all shared seeds have one sign.
    """

    n: int
    mean: float | None
    low: float | None = None
    high: float | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    p: float | None = None
    same_sign: bool = False


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
        random: MaxVio of random routing, smallest and largest over the runs, by scope.
        tokens, steps: of a run, smallest and largest.
        mixed: versions and devices of which the runs have more than one.
        made_with: versions, devices and commits, every value of each.
        bytes_per_token: of the tokenizer on this text; None where it is not known.
        unpaired: arms that see other batches, and runs of one seed that did not begin alike.
        index: its place among the report's tables.
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
    mixed: dict[str, list[str]] = field(default_factory=dict)
    made_with: dict[str, list[str]] = field(default_factory=dict)
    bytes_per_token: float | None = None
    unpaired: tuple[str, ...] = ()
    index: int = 0

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)


def make_table(frame: Frame, index: int, plans: Sequence[Plan], baseline: str | None) -> Table:
    """One of the frame's tables, which must hold a finished run.

    The baseline is the first of these that is an arm here: the given one, the one of the plans
    that name these runs if they agree, `micro`, the first arm. Arms come in the order of the
    plans, then by group size.
    """
    of_table = [run for run in frame.rows() if run["table"] == index]
    measured = {*frame.metrics["run"]}  # at a step, some finished runs may have no metrics
    runs = [run for run in of_table if run["state"] == "done" and run["run"] in measured]
    unfinished = [run for run in of_table if run not in runs]
    names = {run["run"] for run in runs}
    plans = [plan for plan in plans if any(job.run in names for job in plan.jobs)]
    order = _order(runs, plans)
    chosen = baseline if baseline in order else _default_baseline(order, plans)
    ranked = [chosen, *(name for name in order if name != chosen)]
    primaries = {plan.primary for plan in plans}
    primary = primaries.pop() if len(primaries) == 1 else PRIMARY

    seeds = sorted({run["seed"] for run in runs})
    values = _matrices(frame, index, ranked, seeds)
    comparisons = _compared(values.get(primary), ranked, seeds)
    described = _described(values, ranked, primary, comparisons)
    arms = [
        replace(
            _arm(name, runs, unfinished, plans),
            metrics=described[name],
            per_seed={
                metric: {
                    seed: float(value)
                    for seed, value in zip(seeds, matrix[:, column], strict=True)
                    if not np.isnan(value)
                }
                for metric, matrix in values.items()
            },
        )
        for column, name in enumerate(ranked)
    ]
    made_with = _made_with(runs)
    ranges = {scope: _range(run[f"random_{scope}"] for run in runs) for scope in SCOPES}
    sciences = {arm.name: arm.science for arm in arms}
    return Table(
        differs=_differing(frame, index),
        arms=tuple(arms),
        baseline=chosen,
        primary=primary,
        comparisons=comparisons,
        baseline_missing=baseline if baseline != chosen else None,
        random={scope: ends for scope, ends in ranges.items() if ends},
        tokens=_range(run["tokens"] for run in runs),
        steps=_range(run["steps"] for run in runs),
        mixed={key: seen for key, seen in made_with.items() if len(seen) > 1},
        made_with=made_with,
        bytes_per_token=_bytes_per_token(arms[0], primary),
        unpaired=(*other_batches(sciences, runs), *other_starts(runs, frame.starts)),
        index=index,
    )


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
    for metric, seed, arm, value in zip(*(metrics[key] for key in keys), strict=True):
        if metric not in matrices:
            matrices[metric] = np.full((len(seeds), len(arms)), np.nan)
        matrices[metric][row[seed], column[arm]] = value
    return dict(sorted(matrices.items()))


def _compared(values: np.ndarray | None, arms: Sequence[str], seeds: Sequence[int]) -> Comparisons:
    """The test of the primary endpoint, among the arms that have it; empty without a baseline."""
    if values is None or np.isnan(values[:, 0]).all():
        return Comparisons({}, {})
    having = [i for i in range(len(arms)) if not np.isnan(values[:, i]).all()]
    return compare(values[:, having], [arms[i] for i in having], seeds)


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


def _described(
    values: Mapping[str, np.ndarray], arms: Sequence[str], primary: str, comparisons: Comparisons
) -> dict[str, dict[str, ArmMetric]]:
    """The metrics of each arm; `values` are [seeds, arms], with the baseline's column first."""
    described: dict[str, dict[str, ArmMetric]] = {}
    for column, name in enumerate(arms):
        metrics = {
            metric: _arm_metric(matrix[:, column], matrix[:, 0], column == 0)
            for metric, matrix in values.items()
            if not np.isnan(matrix[:, column]).all()
        }
        if name in comparisons.arms:
            adjusted = comparisons.arms[name].adjusted
            metrics[primary] = _with_difference(metrics[primary], adjusted)
        metrics |= _perplexities(metrics, described.get(arms[0], metrics), primary)
        described[name] = metrics
    return described


def _arm_metric(values: np.ndarray, reference: np.ndarray, is_baseline: bool) -> ArmMetric:
    known = values[~np.isnan(values)]
    mean = mean_interval(known)
    described = ArmMetric(len(known), mean.value, mean.low, mean.high)
    difference = values - reference
    paired = difference[~np.isnan(difference)]
    if is_baseline or not len(paired):
        return described
    same_sign = bool(np.all(paired > 0) or np.all(paired < 0))
    untested = replace(mean_interval(paired), p=None)
    return replace(_with_difference(described, untested), same_sign=same_sign)


def _with_difference(metric: ArmMetric, difference: Estimate) -> ArmMetric:
    return replace(
        metric,
        difference=difference.value,
        difference_low=difference.low,
        difference_high=difference.high,
        p=difference.p,
    )


def _perplexities(
    metrics: Mapping[str, ArmMetric], reference: Mapping[str, ArmMetric], primary: str
) -> dict[str, ArmMetric]:
    """`*/ppl*` from `*/nats*`: exp of means and ends; differences are relative to the baseline's.

    A perplexity that is the primary endpoint itself stays as it was measured and tested.
    """
    perplexities = {}
    for name, measured in metrics.items():
        match = EXPONENTIAL.fullmatch(name)
        nats_name = f"{match['split']}/nats{match['domain'] or ''}" if match else ""
        if name == primary or nats_name not in metrics:
            continue
        nats = metrics[nats_name]
        base = _exp(reference[nats_name].mean) if nats_name in reference else None

        def change(difference: float | None, base: float | None = base) -> float | None:
            ratio = percent(difference)
            return None if ratio is None or base is None else base * ratio / 100

        perplexities[name] = ArmMetric(
            *(nats.n, _exp(nats.mean), _exp(nats.low), _exp(nats.high)),
            *map(change, (nats.difference, nats.difference_low, nats.difference_high)),
            same_sign=measured.same_sign,
        )
    return perplexities


def percent(difference: float | None) -> float | None:
    """A difference in nats as percent of perplexity, 100 (exp(d) - 1)."""
    if difference is None or abs(difference) > 700:
        return None
    return 100 * math.expm1(difference)


def _exp(nats: float | None) -> float | None:
    return math.exp(nats) if nats is not None and abs(nats) < 700 else None


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
    nats, bits = arm.metrics.get(PRIMARY), arm.metrics.get("valid/bits_per_byte")
    if primary != PRIMARY or nats is None or bits is None or not nats.mean or not bits.mean:
        return None
    return nats.mean / (bits.mean * math.log(2))


def _made_with(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    keys = dict.fromkeys(key for run in runs for key in run["made_with"])
    return {key: sorted({run["made_with"].get(key, "?") for run in runs}) for key in keys}

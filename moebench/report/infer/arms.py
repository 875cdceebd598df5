"""The arms of one table: their means over seeds, and their differences to the baseline.

Only the primary endpoint is tested (`statistics.compare`). Every other metric is described: by the
mean over the arm's seeds and by the mean of its paired differences, each with Student's t and no
adjustment. A perplexity is the exponential of its mean nats, never a mean of perplexities.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from moebench.records import printable
from moebench.report.infer.statistics import Comparisons, Estimate, compare, mean_interval
from moebench.report.paper.findings import Study, Verdict, verdicts
from moebench.report.read.frame import Frame
from moebench.report.read.run import PRIMARY, SCOPES
from moebench.report.read.studies import Cost, Plan

BATCHES = ("micro_bsz", "data.sampling", "data.temperature", "data.weights", "data.heldout")
"""Keys that decide which sequences a step sees, beside those in which all runs of a table agree."""
START_OFF = 1e-3  # nats; rounding gives 1e-6, other initial weights 1e-2
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
    """One arm of a table.

    Attributes:
        name, arm_hash: of the treatment.
        seeds: the finished ones.
        sequences, group_tokens: size of its balance group; None where it is not fixed.
        metrics: by name.
        science: every key that can change a result and is not at its neutral value.
        runs: names of the finished runs, by seed.
        unfinished: how many other runs are in which state.
        per_seed: values by metric and seed.
        cost: seconds a step, timed alone; None where nobody timed it.
    """

    name: str
    arm_hash: str
    seeds: tuple[int, ...]
    sequences: float | None
    group_tokens: float | None
    metrics: dict[str, Described]
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
        baseline_missing: a baseline that was asked for and is no arm of this table.
        comparisons: of the primary endpoint.
        random: MaxVio of random routing, smallest and largest over the runs, by scope.
        tokens, steps: that a run saw, smallest and largest.
        mixed: versions and devices of which the runs have more than one.
        made_with: versions, devices and commits, every value of each.
        findings: what the runs say of the paper's, where they are about its endpoint.
        bytes_per_token: of the tokenizer on this text; None where it cannot be told.
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
    findings: tuple[Verdict, ...] = ()
    bytes_per_token: float | None = None
    unpaired: tuple[str, ...] = ()
    index: int = 0

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)


def make_table(frame: Frame, index: int, plans: Sequence[Plan], baseline: str | None) -> Table:
    """One of the frame's tables, which must hold a finished run.

    The baseline is, in this order: the given one, the one of the plans that name these runs if
    they agree, `micro`, the first arm. Arms come in the order of the plans, then by group size.
    """
    of_table = [run for run in frame.rows() if run["table"] == index]
    having = {*frame.metrics["run"]}  # at a step, some finished runs may have no metrics
    runs = [run for run in of_table if run["state"] == "done" and run["run"] in having]
    rest = [run for run in of_table if run not in runs]
    names = {run["run"] for run in runs}
    plans = [plan for plan in plans if any(run.run in names for run in plan.runs)]
    order = _ordered(runs, plans)
    chosen = baseline if baseline in order else _baseline(order, plans)
    ranked = [chosen, *(name for name in order if name != chosen)]
    primaries = {plan.primary for plan in plans}
    primary = primaries.pop() if len(primaries) == 1 else PRIMARY

    seeds = sorted({run["seed"] for run in runs})
    values = _matrices(frame, index, ranked, seeds)
    comparisons = _compared(values.get(primary), ranked, seeds)
    arms: list[Arm] = []
    for column, name in enumerate(ranked):
        mine = [run for run in runs if run["arm"] == name]
        others = [run["state"] for run in rest if run["arm"] == name]
        metrics = {
            metric: _described(each[:, column], each[:, 0], column == 0)
            for metric, each in values.items()
            if not np.isnan(each[:, column]).all()
        }
        if name in comparisons.arms:
            metrics[primary] = _with_test(metrics[primary], comparisons.arms[name].adjusted)
        metrics |= _perplexities(metrics, arms[0].metrics if arms else metrics, primary)
        arms.append(
            Arm(
                name=name,
                arm_hash=mine[0]["arm_hash"],
                seeds=tuple(sorted(run["seed"] for run in mine)),
                sequences=next(iter(_known(run["sequences"] for run in mine)), None),
                group_tokens=next(iter(_known(run["group_tokens"] for run in mine)), None),
                metrics=metrics,
                science=mine[0]["science"],
                runs={run["seed"]: run["run"] for run in mine},
                per_seed={
                    metric: {
                        seed: float(value)
                        for seed, value in zip(seeds, each[:, column], strict=True)
                        if not np.isnan(value)
                    }
                    for metric, each in values.items()
                },
                unfinished={state: others.count(state) for state in sorted({*others})},
                cost=next(
                    (p.costs[h] for p in plans if (h := mine[0]["arm_hash"]) in p.costs), None
                ),
            )
        )
    per_token = _bytes_per_token(arms[0], primary)
    found: tuple[Verdict, ...] = ()
    if primary == PRIMARY and primary in values:
        sciences = [arm.science for arm in arms]
        found = tuple(verdicts(Study(ranked, sciences, seeds, values[primary], per_token)))
    made_with = _made_with(runs)
    ranges = {scope: _range([run[f"random_{scope}"] for run in runs]) for scope in SCOPES}
    return Table(
        differs=_differing(frame, index),
        arms=tuple(arms),
        baseline=chosen,
        primary=primary,
        comparisons=comparisons,
        baseline_missing=baseline if baseline != chosen else None,
        random={scope: each for scope, each in ranges.items() if each},
        tokens=_range([run["tokens"] for run in runs]),
        steps=_range([run["steps"] for run in runs]),
        mixed={key: each for key, each in made_with.items() if len(each) > 1},
        made_with=made_with,
        findings=found,
        bytes_per_token=per_token,
        unpaired=(*_other_batches(arms, runs), *_other_starts(runs, frame.starts)),
        index=index,
    )


def _matrices(
    frame: Frame, index: int, arms: Sequence[str], seeds: Sequence[int]
) -> dict[str, np.ndarray]:
    """Each metric's values, [seeds, arms], NaN where there is none."""
    row = {seed: i for i, seed in enumerate(seeds)}
    column = {arm: i for i, arm in enumerate(arms)}
    found: dict[str, np.ndarray] = {}
    metrics = frame.metrics[frame.metrics["table"] == index]
    keys = ("metric", "seed", "arm", "value")
    for metric, seed, arm, value in zip(*(metrics[key] for key in keys), strict=True):
        if metric not in found:
            found[metric] = np.full((len(seeds), len(arms)), np.nan)
        found[metric][row[seed], column[arm]] = value
    return dict(sorted(found.items()))


def _compared(values: np.ndarray | None, arms: Sequence[str], seeds: Sequence[int]) -> Comparisons:
    """The test of the primary endpoint, among the arms that have it; empty without a baseline."""
    if values is None or np.isnan(values[:, 0]).all():
        return Comparisons({}, {})
    having = [i for i in range(len(arms)) if not np.isnan(values[:, i]).all()]
    return compare(values[:, having], [arms[i] for i in having], seeds)


def _ordered(runs: Sequence[Mapping[str, Any]], plans: Sequence[Plan]) -> dict[str, str]:
    """The arms' hashes by name, in order of the plans, of group size and of name."""
    planned = dict.fromkeys(each for plan in plans for each in plan.arm_hashes())
    rank = {arm_hash: i for i, arm_hash in enumerate(planned)}

    def key(run: Mapping[str, Any]) -> tuple[float, float, str]:
        size = run["sequences"]
        known = math.inf if math.isnan(size) else size
        return rank.get(run["arm_hash"], math.inf), known, run["arm"]

    return {run["arm"]: run["arm_hash"] for run in sorted(runs, key=key)}


def _baseline(order: Mapping[str, str], plans: Sequence[Plan]) -> str:
    names = {arm_hash: name for name, arm_hash in order.items()}
    planned = {plan.baseline_hash() for plan in plans}
    if len(planned) == 1 and (found := planned.pop()) in names:
        return names[str(found)]
    return "micro" if "micro" in order else next(iter(order))


def _described(values: np.ndarray, reference: np.ndarray, is_baseline: bool) -> Described:
    own = values[~np.isnan(values)]
    mean = mean_interval(own)
    plain = Described(len(own), mean.value, mean.low, mean.high)
    difference = values - reference
    paired = difference[~np.isnan(difference)]
    if is_baseline or not len(paired):
        return plain
    every = bool(np.all(paired > 0) or np.all(paired < 0))
    return replace(_with_test(plain, replace(mean_interval(paired), p=None)), every_seed=every)


def _with_test(described: Described, difference: Estimate) -> Described:
    return replace(
        described,
        difference=difference.value,
        difference_low=difference.low,
        difference_high=difference.high,
        p=difference.p,
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
    """As nats a token and bits a byte have it; None for another endpoint."""
    nats, bits = arm.metrics.get(PRIMARY), arm.metrics.get("valid/bits_per_byte")
    if primary != PRIMARY or nats is None or bits is None or not nats.mean or not bits.mean:
        return None
    return nats.mean / (bits.mean * math.log(2))


def _other_batches(arms: Sequence[Arm], runs: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """Arms whose runs see other sequences than the baseline's of the same seed.

    By their keys; and whatever the keys say, by what the first steps of single runs held.
    """
    base, explained = arms[0], set()
    for arm in arms[1:]:
        differ = [key for key in BATCHES if arm.science.get(key) != base.science.get(key)]
        if differ:
            told = ", ".join(
                printable(
                    f"{key} {arm.science.get(key, 'at its default')}, there "
                    f"{base.science.get(key, 'at its default')}"
                )
                for key in differ
            )
            explained.add(arm.name)
            yield f"{arm.name} and {base.name} are no pairs: they see other batches ({told})."
    first: dict[Any, Mapping[str, Any]] = {}
    for run in runs:
        if not run["first_sequences"] or run["arm"] in explained:
            continue
        one = first.setdefault(run["seed"], run)
        if run["first_sequences"] != one["first_sequences"]:
            names = f"{run['run']} and {one['run']}"
            yield f"{names} are no pair: their first steps hold other sequences."


def _other_starts(runs: Sequence[Mapping[str, Any]], starts: Mapping[str, float]) -> Iterable[str]:
    """Runs of one seed whose nats before the first step differ, though nothing that acts then does.

    Arms of a seed share initial weights, so that before training they are one model, unless a
    router is perturbed or of another kind. What rounding makes of that is far below START_OFF.
    """
    first: dict[str, Mapping[str, Any]] = {}
    for run in runs:
        acting = {k: v for k, v in run["science"].items() if k.startswith(("router.", "method"))}
        if run["run"] not in starts or "router.perturb" in acting:
            continue
        one = first.setdefault(repr((run["seed"], sorted(acting.items(), key=str))), run)
        values = starts[one["run"]], starts[run["run"]]
        if abs(values[0] - values[1]) > START_OFF:
            yield (
                f"{run['run']} and {one['run']} are no pair: they did not begin from equal weights "
                f"(nats before the first step {values[1]:.4f} and {values[0]:.4f})."
            )


def _made_with(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    keys = dict.fromkeys(key for run in runs for key in run["made_with"])
    return {key: sorted({run["made_with"].get(key, "?") for run in runs}) for key in keys}

"""The metrics of arms, described: means over seeds, and paired differences to the control.

Each has a Student's t interval, and no adjustment. A perplexity is the exponential of mean nats,
never a mean of perplexities.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moebench.report.infer.statistics import Comparisons, Estimate, mean_interval

EXPONENTIAL = re.compile(r"(?P<split>\w+)/ppl(?P<domain>/.*)?")


@dataclass(frozen=True)
class ArmMetric:
    """A metric of an arm; intervals are of 95 %, None where the seeds do not allow one.

    Attributes:
        n: seeds with a value.
        mean, low, high: over those seeds.
        difference, difference_low, difference_high: to the baseline, in the metric's unit.
        p: of the verdict, adjusted; None without a verdict.
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


def describe(
    values: Mapping[str, np.ndarray],
    arms: Sequence[str],
    primary: str,
    comparisons: Comparisons,
    control: Sequence[int],
) -> dict[str, dict[str, ArmMetric]]:
    """The metrics of each arm; `values` are [seeds, arms], with the baseline's column first."""
    described: dict[str, dict[str, ArmMetric]] = {}
    for column, name in enumerate(arms):
        against = [0] if column in control else control
        metrics = {
            metric: _arm_metric(matrix[:, column], control_of(matrix, against), column == 0)
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


def control_of(values: np.ndarray, columns: Sequence[int]) -> np.ndarray:
    """What differences are to, [seeds]: the mean of some columns, NaN where one is missing."""
    return values[:, list(columns)].mean(axis=1)

"""The paper's findings beside what these runs show: agrees, contradicts, or cannot tell.

The arms of a finding differ in nothing else. A verdict follows from a 95 % interval:

- A *difference* agrees if the interval excludes 0 on the paper's side. It is adjusted for all arms
  of the table.
- An *equality* agrees if the arms differ by less than a quarter of the gap between micro and global
  in the same runs.
- A *trend* agrees if the interval of the slope along the arms, or of its change at a point,
  excludes 0 on the paper's side.

Runs contradict a finding if the interval excludes the paper's size, or 0 on the other side. The
paper's sizes are log ratios of perplexities per token, divided by an assumed number of bytes per
token.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from moebench.plans import PRIMARY
from moebench.report.infer.arms import Table
from moebench.report.infer.contrasts import EQUAL_SHARE, Contrast, bend, contrasts, equality, slope
from moebench.report.infer.statistics import (
    FEWEST_SEEDS,
    Comparisons,
    Estimate,
    compare,
    seeds_needed,
)
from moebench.report.paper.findings import BYTES, PAPER, findings, log_ratio, paper_gap
from moebench.report.paper.selectors import AXES, all_else, options_as_keys, pairs

AGREES, CONTRADICTS, CANNOT_TELL = "agrees", "contradicts", "cannot tell"


@dataclass(frozen=True)
class Verdict:
    """What the runs show about one finding; sizes in nats per byte, or per token without bytes.

    Attributes:
        claim, source, type: as in the finding's file.
        arms: their names.
        verdict: `agrees`, `contradicts` or `cannot tell`.
        reason: why, in a few words.
        here: the difference, or the slope, with its 95 % interval.
        paper: the same in the paper, at 4, 3 and 5 bytes a token; None where it gives no figure.
        per: what a slope is for, such as " a doubling"; "" for others.
        unit: "byte" or "token".
        resolved: half of the interval: the smallest size that these seeds distinguish from 0.
        seeds: the number that shows the paper's size in four of five studies; None if unknown or
            above 10,000.
    """

    claim: str
    source: str
    type: str
    arms: tuple[str, ...]
    verdict: str
    reason: str
    here: Estimate
    paper: tuple[float, float, float] | None
    per: str
    unit: str
    resolved: float | None
    seeds: int | None


@dataclass(frozen=True)
class Evidence:
    """The runs that findings are compared with.

    Attributes:
        arms: names, in the order of the columns; the baseline first.
        sciences: of each arm, every key that is not at its neutral value.
        seeds: of the rows of `values`.
        values: [seeds, arms] `valid/nats` in nats per token; NaN where a run is missing.
        bytes_per_token: None where it is not known.
    """

    arms: Sequence[str]
    sciences: Sequence[Mapping[str, Any]]
    seeds: Sequence[int]
    values: np.ndarray
    bytes_per_token: float | None


class Effect(NamedTuple):
    """What the runs show of one finding, in nats a token.

    Attributes:
        columns: of the arms of the finding.
        estimate: the difference, or the slope.
        seeds: the number of seeds that have all of these arms.
        sd: the estimated standard deviation of one run; None if there are too few seeds.
        paper: the paper's size; None where it gives no figure.
    """

    columns: Sequence[int]
    estimate: Estimate
    seeds: int
    sd: float | None
    paper: float | None


def verdicts_of_table(table: Table) -> tuple[Verdict, ...]:
    """The verdicts of a table on the paper's findings; empty if it tests another endpoint."""
    if table.primary != PRIMARY or PRIMARY not in table.arms[0].per_seed:
        return ()
    seeds = sorted({seed for arm in table.arms for seed in arm.seeds})
    per_seed = [arm.per_seed[PRIMARY] for arm in table.arms]
    return tuple(
        verdicts(
            Evidence(
                arms=[arm.name for arm in table.arms],
                sciences=[arm.science for arm in table.arms],
                seeds=seeds,
                values=np.array([[of.get(seed, math.nan) for of in per_seed] for seed in seeds]),
                bytes_per_token=table.bytes_per_token,
            )
        )
    )


def verdicts(evidence: Evidence) -> list[Verdict]:
    """A verdict on every finding, for each set of its arms that are equal in all else."""
    judges = {"difference": _difference, "equality": _equality, "trend": _trend}
    sciences = [options_as_keys(science) for science in evidence.sciences]
    evidence = replace(evidence, sciences=sciences)
    return [
        verdict
        for finding in findings().values()
        for verdict in judges[finding["type"]](finding, evidence)
    ]


def _difference(finding: Mapping[str, Any], evidence: Evidence) -> Iterable[Verdict]:
    for arm, against in pairs(evidence.sciences, finding["arm"], finding["against"]):
        compared = _compared_with(evidence, against)
        comparison = compared.arms.get(evidence.arms[arm])
        if comparison is None:
            continue
        estimate, seeds = comparison.adjusted, len(comparison.per_seed)
        sd = compared.sd or _sd(estimate, comparison.paired, seeds)
        effect = Effect((arm, against), estimate, seeds, sd, log_ratio(finding))
        yield _judged(finding, evidence, effect, family=max(1, compared.family))


def _compared_with(evidence: Evidence, baseline: int) -> Comparisons:
    """Compare every arm with one of them."""
    order = [baseline, *(i for i in range(len(evidence.arms)) if i != baseline)]
    names = [evidence.arms[i] for i in order]
    return compare(evidence.values[:, order], names, evidence.seeds)


def _sd(estimate: Estimate, paired: Estimate | None, seeds: int) -> float | None:
    """The standard deviation of one run, estimated from the paired differences."""
    if paired is None or paired.low is None or paired.high is None or estimate.low is None:
        return None
    from scipy.special import stdtrit

    error = (paired.high - paired.low) / 2 / float(stdtrit(seeds - 1, 0.975))
    return error * math.sqrt(seeds / 2)


def _trend(finding: Mapping[str, Any], evidence: Evidence) -> Iterable[Verdict]:
    place, per = AXES[finding["along"]]
    bends_at = finding.get("bends_at")

    def coefficients(x: Sequence[float]) -> np.ndarray | None:
        if len({*x}) < 3:
            return None
        return slope(x) if bends_at is None else bend(x, bends_at)

    groups: dict[str, list[tuple[float, int]]] = {}
    for i, science in enumerate(evidence.sciences):
        x = place(science)
        if x is not None:
            rest = all_else(science, ["data.homogeneity"])
            groups.setdefault(repr(sorted(rest.items(), key=str)), []).append((x, i))
    perplexity = finding.get("perplexity", {})
    theirs = coefficients(list(perplexity))
    paper = None if theirs is None else float(theirs @ np.log(list(perplexity.values())))
    for placed in groups.values():
        ours = coefficients([x for x, _ in placed])
        if ours is None:
            continue
        weights = np.zeros((1, len(evidence.arms)))
        weights[0, [i for _, i in placed]] = ours
        (contrast,) = contrasts(evidence.values, weights)
        if contrast.seeds:
            columns = [i for _, i in sorted(placed)]
            yield _judged(finding, evidence, _effect(columns, contrast, paper), per=per)


def _equality(finding: Mapping[str, Any], evidence: Evidence) -> Iterable[Verdict]:
    selectors = [finding[key] for key in ("arm", "against", "worse", "better")]
    for arm, against, worse, better in pairs(evidence.sciences, *selectors):
        test = equality(evidence.values, arm, against, worse, better)
        seeds = test.difference.seeds
        if not seeds:
            continue
        effect = _effect((arm, against), test.difference, log_ratio(finding))
        verdict = _judged(finding, evidence, effect, margin=EQUAL_SHARE * paper_gap())
        if seeds < FEWEST_SEEDS:
            yield verdict
            continue
        gap = _compared_with(evidence, worse).arms.get(evidence.arms[better])
        low, high = (gap.adjusted.low, gap.adjusted.high) if gap else (None, None)
        margin = f"{abs(test.gap.value) * EQUAL_SHARE / (evidence.bytes_per_token or 1):.4f}"
        outcome, reason = CANNOT_TELL, f"not shown to be within {margin}, a quarter of the gap"
        if low is None or high is None or low <= 0 <= high:
            reason = "the gap of micro and global is unresolved"
        elif low > 0:
            reason = "global is no better than micro here, so there is no gap to measure by"
        elif test.equal:
            outcome, reason = AGREES, f"within {margin}, a quarter of the gap of micro and global"
        elif test.unequal:
            outcome, reason = CONTRADICTS, f"further apart than {margin}, a quarter of the gap"
        yield replace(verdict, verdict=outcome, reason=reason)


def _effect(columns: Sequence[int], contrast: Contrast, paper: float | None) -> Effect:
    sd = None if contrast.error is None else contrast.error * math.sqrt(contrast.seeds / 2)
    return Effect(columns, contrast.estimate(), contrast.seeds, sd, paper)


def _judged(
    finding: Mapping[str, Any],
    evidence: Evidence,
    effect: Effect,
    *,
    family: int = 1,
    per: str = "",
    margin: float | None = None,
) -> Verdict:
    """A verdict from an interval; all sizes become nats per byte, where bytes are known.

    Args:
        finding: as its file declares it.
        evidence: the runs.
        effect: what they show.
        family: comparisons that the interval is adjusted for.
        per: what a slope is for.
        margin: nats per token within which arms count as equal; None for other findings.
    """
    known, size = bool(evidence.bytes_per_token), evidence.bytes_per_token or 1.0
    here = _divided(effect.estimate, size)
    sizes = None
    if effect.paper is not None and known:
        sizes = (effect.paper / BYTES[0], effect.paper / BYTES[1], effect.paper / BYTES[2])
    sign = finding.get("sign") or math.copysign(1, effect.paper or 0)
    smallest = min(map(abs, sizes)) if sizes else None
    outcome, reason = _by_interval(here, sign, smallest, effect.seeds)
    wanted = margin / BYTES[0] if margin else (abs(sizes[0]) if sizes else None)
    needed = None
    if effect.sd and wanted and known:
        needed = seeds_needed(effect.sd / size, family, wanted)
    half = None if here.low is None or here.high is None else (here.high - here.low) / 2
    return Verdict(
        claim=finding["claim"],
        source=f"{PAPER}, {finding['source']}",
        type=finding["type"],
        arms=tuple(evidence.arms[i] for i in effect.columns),
        verdict=outcome,
        reason=reason,
        here=here,
        paper=sizes,
        per=per,
        unit="byte" if known else "token",
        resolved=half,
        seeds=needed,
    )


def _divided(estimate: Estimate, size: float) -> Estimate:
    low, high = (None if end is None else end / size for end in (estimate.low, estimate.high))
    return Estimate(estimate.value / size, low, high, estimate.p)


def _by_interval(
    here: Estimate, sign: float, smallest: float | None, seeds: int
) -> tuple[str, str]:
    """A verdict and its reason, from an interval, 0 and the paper's size."""
    if here.low is None or here.high is None:
        few = f"{seeds} seed{'s' * (seeds != 1)}, and an interval takes {FEWEST_SEEDS}"
        return CANNOT_TELL, few if seeds < FEWEST_SEEDS else "the runs do not vary"
    low, high = sorted((sign * here.low, sign * here.high))
    if low > 0:
        return AGREES, "the interval lies off 0 on the paper's side"
    if high < 0:
        return CONTRADICTS, "the interval lies off 0 on the other side"
    if smallest is not None and high < smallest:
        return CONTRADICTS, "the interval includes 0 and excludes the paper's size"
    return CANNOT_TELL, "the interval includes 0"

"""The paper's findings beside what these runs show: agrees, contradicts, or cannot tell.

The arms of a finding differ in nothing else. `judge.py` adjusts the p values of all findings.

- A *difference* or a *trend* is decided if the paired t of its contrast is below 5 %. It agrees on
  the paper's side of 0, and contradicts on the other.
- A *ranking* is decided if each arm differs from the next, and agrees if each is higher. It
  contradicts if an arm is lower than the next, at the level for all of these differences together.
- An *equality* agrees if the arms differ by less than a quarter of the gap between micro and global
  in the same runs, and contradicts if they differ by more.

At a look of a stopping rule, the level of the look takes the place of 5 %, and a first finding
whose interval lies within the rule's margin is *within margin*: the arms of an equality are then as
good within this margin.

An undecided difference contradicts, too, if its interval excludes the paper's size. These intervals
hold for all findings tested together (Bonferroni); that is a family of its own. The paper's sizes
are log ratios of perplexities per token, divided by an assumed number of bytes per token. It gives
none for load and routing.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from moebench.catalogue import find
from moebench.plans import PRIMARY
from moebench.report.infer.contrasts import EQUAL_SHARE, Contrast, bend, contrast, equality, slope
from moebench.report.infer.decisions import LEVEL, excludes
from moebench.report.infer.statistics import Estimate, seeds_needed
from moebench.report.paper.findings import BYTES, PAPER, findings, log_ratio, paper_gap
from moebench.report.paper.selectors import AXES, all_else, options_as_keys, pairs

AGREES, CONTRADICTS, CANNOT_TELL = "agrees", "contradicts", "cannot tell"
WITHIN = "within margin"
NOT_TESTED, TOO_EARLY = "not tested", "too early"
NOT_TAKEN = "the treatment did not take"
# why a verdict is what it is, in the words of every report
SAME, OPPOSITE = "in the paper's direction", "in the opposite direction"
UNSURE, EXCLUDED = "zero is not ruled out", "the paper's size is ruled out"
MIXED = "homogeneity of micro-batches"  # the axis of a trend whose arms may have equal loads


@dataclass(frozen=True)
class Verdict:
    """What the runs say of one finding; nats in nats a byte, or a token where bytes are unknown.

    Attributes:
        metric: that it is about.
        claim, source, type: as in the finding's file.
        arms: their names.
        verdict: `agrees`, `contradicts`, `within margin`, `cannot tell`, `not tested` or
            `too early`.
        reason: why, in a few words.
        p: of the verdict, adjusted; None where none is given.
        treatment: between-seed deviations by which the arms differ in load; None where that is
            unknown or not to be expected.
        here: the difference, or the slope, with its own interval at the level of the verdict.
        paper: the same in the paper, at 4, 3 and 5 bytes a token; None where it gives no figure.
        per: what a slope is for, such as " a doubling"; "" for others.
        unit: "byte" or "token" of nats, else that of the metric.
        resolved: half of the interval, the smallest size that these seeds can tell from 0.
        seeds: that would show the paper's size in four of five studies; None if unknown or above
            10,000.
        level: of the verdict.
    """

    metric: str
    claim: str
    source: str
    type: str
    arms: tuple[str, ...]
    verdict: str
    reason: str
    p: float | None
    treatment: float | None
    here: Estimate
    paper: tuple[float, float, float] | None
    per: str
    unit: str
    resolved: float | None
    seeds: int | None
    level: float = LEVEL


@dataclass(frozen=True)
class Evidence:
    """The runs that findings are compared with.

    Attributes:
        arms: names, in the order of the columns; the baseline first.
        sciences: of each arm, every key that is not at its neutral value.
        values: of the metric, [seeds, arms], NaN where there is none; nats in nats a token. The
            baseline's column is what differences are to.
        bytes_per_token: None where it is not known, and for a metric other than nats.
        metric: its name.
        level: of the verdicts.
    """

    arms: Sequence[str]
    sciences: Sequence[Mapping[str, Any]]
    values: np.ndarray
    bytes_per_token: float | None
    metric: str = PRIMARY
    level: float = LEVEL

    @property
    def unit(self) -> str:
        """Of the sizes in a verdict."""
        if self.metric == PRIMARY:
            return "byte" if self.bytes_per_token else "token"
        declared = find(self.metric)
        return declared.unit if declared else ""


class Effect(NamedTuple):
    """What the runs show of one finding, before any verdict; in the metric's unit.

    Attributes:
        name: of the finding's file.
        finding: as the file declares it.
        columns: the arms that it is about.
        contrast: the difference, or the slope.
        paper: the paper's size; None where it gives no figure.
        p: of the test alone; 1 where the seeds allow none.
        if_decided: verdict and reason where p passes the level.
        otherwise: the reason where it does not.
        per: what a slope is for.
        margin: nats a token within which arms count as equal; None for other findings.
        takes: whether its arms are to differ in load.
    """

    name: str
    finding: Mapping[str, Any]
    columns: Sequence[int]
    contrast: Contrast
    paper: float | None
    p: float
    if_decided: tuple[str, str]
    otherwise: str
    per: str = ""
    margin: float | None = None
    takes: bool = True


def effects(evidence: Evidence) -> list[Effect]:
    """Every finding on the metric whose arms are there, for each set equal in all else."""
    judges = {
        "difference": _difference,
        "equality": _equality,
        "ranking": _ranking,
        "trend": _trend,
    }
    sciences = [options_as_keys(science) for science in evidence.sciences]
    evidence = replace(evidence, sciences=sciences)
    return [
        effect
        for name, finding in findings().items()
        if finding["type"] in judges and metric_of(finding) == evidence.metric
        for effect in judges[finding["type"]](name, finding, evidence)
    ]


def metric_of(finding: Mapping[str, Any]) -> str:
    return finding.get("metric", PRIMARY)


def _difference(name: str, finding: Mapping[str, Any], evidence: Evidence) -> Iterable[Effect]:
    for arm, against in pairs(evidence.sciences, finding["arm"], finding["against"]):
        measured = contrast(evidence.values, _less(evidence, arm, against))
        if measured.seeds:
            paper = log_ratio(finding) if "perplexity" in finding else None
            yield _by_sign(name, finding, (arm, against), measured, paper)


def _less(evidence: Evidence, arm: int, against: int) -> np.ndarray:
    """Coefficients of an arm less another."""
    arms = np.eye(len(evidence.arms))
    return arms[arm] - arms[against]


def _trend(name: str, finding: Mapping[str, Any], evidence: Evidence) -> Iterable[Effect]:
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
        weights = np.zeros(len(evidence.arms))
        weights[[i for _, i in placed]] = ours
        measured = contrast(evidence.values, weights)
        if measured.seeds:
            columns = [i for _, i in sorted(placed)]
            effect = _by_sign(name, finding, columns, measured, paper)
            yield effect._replace(per=per, takes=finding["along"] != MIXED)


def _by_sign(
    name: str,
    finding: Mapping[str, Any],
    columns: Sequence[int],
    measured: Contrast,
    paper: float | None,
) -> Effect:
    """An effect whose sign decides."""
    sign = finding.get("sign") or math.copysign(1, paper or 0)
    agrees = sign * measured.value > 0
    decided = (AGREES, SAME) if agrees else (CONTRADICTS, OPPOSITE)
    p = measured.estimate().p
    return Effect(
        name,
        finding,
        columns,
        measured,
        paper,
        p=1.0 if p is None else p,
        if_decided=decided,
        otherwise=UNSURE,
    )


def _ranking(name: str, finding: Mapping[str, Any], evidence: Evidence) -> Iterable[Effect]:
    """The step that is told worst stands for all of them: no more is known of their order."""
    for columns in pairs(evidence.sciences, *finding["highest_first"]):
        steps = [contrast(evidence.values, _less(evidence, *two)) for two in pairwise(columns)]
        if not all(step.seeds for step in steps):
            continue
        higher = [2 * step.tail(step.value) for step in steps]
        lower = [2 * len(steps) * step.tail(-step.value) for step in steps]
        agrees, weakest = max(higher) <= min(lower), higher.index(max(higher))
        above, below = (evidence.arms[columns[weakest + i]] for i in (0, 1))
        yield Effect(
            name,
            finding,
            columns,
            steps[weakest],
            None,
            p=min(1.0, max(higher), *lower),
            if_decided=(AGREES, f"the weakest step is {above} above {below}")
            if agrees
            else (CONTRADICTS, f"{above} is below {below}"),
            otherwise=f"{above} is not shown to be above {below}",
        )


def _equality(name: str, finding: Mapping[str, Any], evidence: Evidence) -> Iterable[Effect]:
    selectors = [finding[key] for key in ("arm", "against", "worse", "better")]
    for arm, against, worse, better in pairs(evidence.sciences, *selectors):
        test = equality(evidence.values, arm, against, worse, better)
        if not test.difference.seeds:
            continue
        margin = f"{abs(test.gap.value) * EQUAL_SHARE / (evidence.bytes_per_token or 1):.4f}"
        quarter = f"{margin}, a quarter of the gap of micro and global"
        decided = (AGREES, f"they differ by less than {quarter}")
        if test.unequal < test.equal:
            decided = (CONTRADICTS, f"they differ by more than {quarter}")
        otherwise = f"not shown to differ by less than {quarter}"
        if test.gap.value <= 0:
            otherwise = "global is no better than micro here, so there is no gap to measure by"
        elif 2 * test.gap.tail(test.gap.value) >= evidence.level:
            otherwise = "the gap of micro and global is unresolved"
        yield Effect(
            name,
            finding,
            (arm, against),
            test.difference,
            log_ratio(finding),
            p=min(test.equal, test.unequal),
            if_decided=decided,
            otherwise=otherwise,
            margin=EQUAL_SHARE * paper_gap(),
            takes=False,
        )


def verdict(
    effect: Effect,
    evidence: Evidence,
    *,
    p: float | None,
    withheld: tuple[str, str],
    treatment: float | None,
    took: bool,
    tests: int,
    family: int,
    margin: float | None = None,
) -> Verdict:
    """The verdict on an effect; all sizes become nats a byte, where bytes are known.

    Args:
        effect: what the runs show.
        evidence: the runs.
        p: adjusted; None where no verdict is given.
        withheld: the word in place of a verdict, and the reason; empty where one is given.
        treatment: deviations by which the arms differ in load.
        took: whether that is enough, or not to be expected.
        tests: how many are tested; intervals that exclude the paper's size hold for all of them.
        family: how many share the level; 1 in a declared order.
        margin: within which the interval lies, as a stopping rule found; None elsewhere.
    """
    known, size = bool(evidence.bytes_per_token), evidence.bytes_per_token or 1.0
    here = _divided(effect.contrast.estimate(1 - evidence.level), size)
    sizes = None
    if effect.paper is not None and known:
        sizes = (effect.paper / BYTES[0], effect.paper / BYTES[1], effect.paper / BYTES[2])
    outcome, reason = withheld
    if p is not None:
        short = took and effect.margin is None and _excludes(effect, evidence, sizes, tests)
        outcome, reason = _outcome(effect, p < evidence.level, margin, took=took, short=short)
    wanted = effect.margin / BYTES[0] if effect.margin else (abs(sizes[0]) if sizes else None)
    needed = None
    if effect.contrast.error and wanted and known:
        sd = effect.contrast.error * math.sqrt(effect.contrast.seeds / 2)
        needed = seeds_needed(sd / size, family, wanted)
    half = None if here.low is None or here.high is None else (here.high - here.low) / 2
    return Verdict(
        metric=evidence.metric,
        claim=effect.finding["claim"],
        source=f"{PAPER}, {effect.finding['source']}",
        type=effect.finding["type"],
        arms=tuple(evidence.arms[i] for i in effect.columns),
        verdict=outcome,
        reason=reason,
        p=p,
        treatment=treatment,
        here=here,
        paper=sizes,
        per=effect.per,
        unit=evidence.unit,
        resolved=half,
        seeds=needed,
        level=evidence.level,
    )


def _outcome(
    effect: Effect, decided: bool, margin: float | None, *, took: bool, short: bool
) -> tuple[str, str]:
    """The word of a verdict, and its reason.

    Args:
        decided: whether p is below the level.
        margin, took: as in `verdict`.
        short: whether the paper's size is excluded.
    """
    if decided:
        return effect.if_decided
    outcome, reason = CANNOT_TELL, effect.otherwise if took else NOT_TAKEN
    if margin is not None:
        outcome = WITHIN
        equality = effect.margin is not None
        where = f"between -{margin:g} and {margin:g}{effect.per}"
        reason = f"as good within {margin:g}" if equality else where
        reason += f"; {NOT_TAKEN}" * (not took)
    if short:
        return CONTRADICTS, f"{UNSURE if margin is None else reason}; {EXCLUDED}"
    return outcome, reason


def _excludes(
    effect: Effect, evidence: Evidence, sizes: Sequence[float] | None, tests: int
) -> bool:
    """Whether an effect lies short of the paper's size, at every number of bytes a token."""
    if sizes is None:
        return False
    (value, error, seeds), size = effect.contrast, evidence.bytes_per_token or 1.0
    if error is None:
        return False
    return all(
        excludes(value / size, error / size, seeds, paper, tests, evidence.level) for paper in sizes
    )


def _divided(estimate: Estimate, size: float) -> Estimate:
    low, high = (None if end is None else end / size for end in (estimate.low, estimate.high))
    return Estimate(estimate.value / size, low, high, estimate.p)


def few_seeds(seeds: int, fewest: int) -> str:
    """Why so few seeds bear no verdict; "" for enough."""
    return f"{seeds} seed{'s' * (seeds != 1)}, and a verdict takes {fewest}" * (seeds < fewest)

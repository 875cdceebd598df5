"""The paper's findings beside what these runs show: agrees, contradicts, or cannot tell.

Each finding is a file in `paper/`: its claim, where the paper says so, its type, how its arms are
recognised and the paper's perplexities. Arms of one finding differ in nothing else. A *difference*
agrees where its interval, adjusted for all arms of the table, lies off 0 on the paper's side; an
*equality* where the arms differ by less than a quarter of the gap of micro and global in the same
runs; a *trend* where the slope along the arms, or its change at a point, lies off 0. An interval
that excludes the paper's size, or lies on the other side, contradicts. The paper's sizes are log
ratios of perplexities a token, divided by an assumed number of bytes a token.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from moebench.report.infer.contrasts import EQUAL_SHARE, Contrast, bend, contrasts, equality, slope
from moebench.report.infer.statistics import (
    FEWEST_SEEDS,
    Comparisons,
    Estimate,
    compare,
    seeds_needed,
)
from moebench.report.paper.selectors import (
    CONTROLS,
    all_else,
    equals,
    meets,
    options_as_keys,
    pairs,
)

PAPER = "arXiv 2501.11873"
PAPER_TOKENS = 120e9
BYTES = (4.0, 3.0, 5.0)
"""Bytes a token in the paper: assumed, and the range of the assumption."""

AGREES, CONTRADICTS, CANNOT_TELL = "agrees", "contradicts", "cannot tell"


@dataclass(frozen=True)
class Verdict:
    """What the runs say of one finding; sizes in nats a byte, or a token where bytes are unknown.

    Attributes:
        claim, source, type: as in the finding's file.
        arms: that it was seen in, by name.
        verdict: `agrees`, `contradicts` or `cannot tell`.
        reason: why, in a few words.
        here: the difference, or the slope, with its 95 % interval.
        paper: the same in the paper, at 4, 3 and 5 bytes a token; None where it gives no figure.
        per: what a size is for: "" or " a doubling", ...
        unit: "byte" or "token".
        resolved: half of the interval, the smallest size that these seeds can tell from 0.
        seeds: that would show the paper's size in four of five studies; None if unknown or above
            10,000.
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
class Study:
    """What a finding is looked for in.

    Attributes:
        arms: names, in the order of the columns; the baseline first.
        sciences: of each arm, every key that is not at its neutral value.
        seeds: of the rows.
        values: of the primary endpoint, [seeds, arms], NaN where there is none; in nats a token.
        bytes_per_token: None where it is not known.
    """

    arms: Sequence[str]
    sciences: Sequence[Mapping[str, Any]]
    seeds: Sequence[int]
    values: np.ndarray
    bytes_per_token: float | None


@lru_cache(maxsize=1)
def findings() -> dict[str, dict[str, Any]]:
    """The files in `paper/`, by name, whose number is their place."""
    folder = Path(__file__).parent
    return {path.stem: yaml.safe_load(path.read_text()) for path in sorted(folder.glob("*.yaml"))}


def paper_gap() -> float:
    """Micro against global in the paper, nats a token."""
    found = findings()["01-global-below-micro"]["perplexity"]
    return math.log(found["against"] / found["arm"])


def verdicts(study: Study) -> list[Verdict]:
    """Every finding whose arms are there, for each set of arms that are equal in all else."""
    judges = {"difference": _difference, "equality": _equality, "trend": _trend}
    study = replace(study, sciences=[options_as_keys(each) for each in study.sciences])
    return [
        verdict for each in findings().values() for verdict in judges[each["type"]](each, study)
    ]


# What they say


def _difference(finding: Mapping[str, Any], study: Study) -> Iterable[Verdict]:
    for arm, against in pairs(study.sciences, finding["arm"], finding["against"]):
        found = compare_with(study, against)
        comparison = found.arms.get(study.arms[arm])
        if comparison is None:
            continue
        estimate, seeds = comparison.adjusted, len(comparison.per_seed)
        sd = found.sd or _sd(estimate, comparison.paired, seeds)
        yield _judged(
            finding,
            study,
            (arm, against),
            estimate,
            _log_ratio(finding),
            seeds,
            sd,
            family=max(1, found.family),
        )


def compare_with(study: Study, baseline: int) -> Comparisons:
    """Every arm against one of them."""
    order = [baseline, *(i for i in range(len(study.arms)) if i != baseline)]
    names = [study.arms[i] for i in order]
    return compare(study.values[:, order], names, study.seeds)


def _sd(estimate: Estimate, paired: Estimate | None, seeds: int) -> float | None:
    """Of one run, as far as the paired differences tell."""
    if paired is None or paired.low is None or paired.high is None or estimate.low is None:
        return None
    from scipy.special import stdtrit

    error = (paired.high - paired.low) / 2 / float(stdtrit(seeds - 1, 0.975))
    return error * math.sqrt(seeds / 2)


def _trend(finding: Mapping[str, Any], study: Study) -> Iterable[Verdict]:
    place, per = AXES[finding["along"]]
    bends_at = finding.get("bends_at")

    def coefficients(x: Sequence[float]) -> np.ndarray | None:
        if len({*x}) < 3:
            return None
        return slope(x) if bends_at is None else bend(x, bends_at)

    groups: dict[str, list[tuple[float, int]]] = {}
    for i, science in enumerate(study.sciences):
        x = place(science)
        if x is not None:
            rest = all_else(science, ["data.homogeneity"])
            groups.setdefault(repr(sorted(rest.items(), key=str)), []).append((x, i))
    for placed in groups.values():
        columns = [i for _, i in placed]
        own = coefficients([x for x, _ in placed])
        if own is None:
            continue
        weights = np.zeros((1, len(study.arms)))
        weights[0, columns] = own
        (found,) = contrasts(study.values, weights)
        if not found.seeds:
            continue
        perplexity = finding.get("perplexity", {})
        theirs = coefficients(list(perplexity))
        paper = None if theirs is None else float(theirs @ np.log(list(perplexity.values())))
        columns = [i for _, i in sorted(placed)]
        yield _judged(
            finding,
            study,
            columns,
            found.estimate(),
            paper,
            found.seeds,
            _one_run(found),
            per=per,
        )


def _log2_balance_bsz(science: Mapping[str, Any]) -> float | None:
    size = science.get("balance_bsz")
    if not meets({"scope": "group"}, science) or not isinstance(size, int) or size < 1:
        return None
    return math.log2(size)


def share_before_global(science: Mapping[str, Any]) -> float | None:
    micro, whole = (
        {"scope": "group", "balance_bsz": f"{size}_bsz"} for size in ("micro", "global")
    )
    if meets(whole, science) or meets(micro, science):
        return float(meets(micro, science))
    terms = science.get("terms")
    if not isinstance(terms, list) or len(terms) != 2 or {*CONTROLS} & {*science}:
        return None
    switch = terms[0].get("stop")
    share = None if switch is None else switch / science["train.steps"]
    wanted = [micro | {"stop": share}, whole | {"start": share}]
    return share if share is not None and equals(wanted, terms, science) else None


def _homogeneity(science: Mapping[str, Any]) -> float | None:
    found = {key: value for key, value in science.items() if key != "data.homogeneity"}
    if not meets({"scope": "group", "balance_bsz": "micro_bsz"}, found):
        return None
    return science.get("data.homogeneity", 1.0)


AXES = {
    "log2 balance_bsz": (_log2_balance_bsz, " a doubling"),
    "share of the steps before global": (share_before_global, " for all of the steps"),
    "homogeneity of micro-batches": (_homogeneity, " from mixed to pure"),
}


def _equality(finding: Mapping[str, Any], study: Study) -> Iterable[Verdict]:
    selectors = [finding[key] for key in ("arm", "against", "worse", "better")]
    for arm, against, worse, better in pairs(study.sciences, *selectors):
        test = equality(study.values, arm, against, worse, better)
        if not test.difference.seeds:
            continue
        gap = compare_with(study, worse).arms.get(study.arms[better])
        estimate, seeds = test.difference.estimate(), test.difference.seeds
        verdict = _judged(
            finding,
            study,
            (arm, against),
            estimate,
            _log_ratio(finding),
            seeds,
            _one_run(test.difference),
            margin=EQUAL_SHARE * paper_gap(),
        )
        size = study.bytes_per_token or 1
        margin = f"{abs(test.gap.value) * EQUAL_SHARE / size:.4f}"
        if seeds < FEWEST_SEEDS:
            yield verdict
            continue
        low, high = (gap.adjusted.low, gap.adjusted.high) if gap else (None, None)
        said, reason = CANNOT_TELL, f"not shown to be within {margin}, a quarter of the gap"
        if low is None or high is None or low <= 0 <= high:
            reason = "the gap of micro and global is unresolved"
        elif low > 0:
            reason = "global is no better than micro here, so there is no gap to measure by"
        elif test.equal:
            said, reason = AGREES, f"within {margin}, a quarter of the gap of micro and global"
        elif test.unequal:
            said, reason = CONTRADICTS, f"further apart than {margin}, a quarter of the gap"
        yield _with(verdict, said, reason)


def _one_run(contrast: Contrast) -> float | None:
    return None if contrast.error is None else contrast.error * math.sqrt(contrast.seeds / 2)


def _judged(
    finding: Mapping[str, Any],
    study: Study,
    columns: Sequence[int],
    estimate: Estimate,
    paper: float | None,
    seeds: int,
    sd: float | None,
    *,
    family: int = 1,
    per: str = "",
    margin: float | None = None,
) -> Verdict:
    """A verdict from an interval; all sizes become nats a byte, where bytes are known."""
    size = study.bytes_per_token or 1.0
    here = Estimate(*(None if v is None else v / size for v in _ends(estimate)), estimate.p)  # pyright: ignore
    sizes = None
    if paper is not None and study.bytes_per_token:
        sizes = (paper / BYTES[0], paper / BYTES[1], paper / BYTES[2])
    sign = finding.get("sign") or math.copysign(1, paper or 0)
    smallest = min(map(abs, sizes)) if sizes else None
    said, reason = _by_interval(here, sign, smallest, seeds)
    wanted = margin / BYTES[0] if margin else (abs(sizes[0]) if sizes else None)
    needed = None
    if sd and wanted and study.bytes_per_token:
        needed = seeds_needed(sd / size, family, wanted)
    half = None if here.low is None or here.high is None else (here.high - here.low) / 2
    return Verdict(
        claim=finding["claim"],
        source=f"{PAPER}, {finding['source']}",
        type=finding["type"],
        arms=tuple(study.arms[i] for i in columns),
        verdict=said,
        reason=reason,
        here=here,
        paper=sizes,
        per=per,
        unit="byte" if study.bytes_per_token else "token",
        resolved=half,
        seeds=needed,
    )


def _by_interval(
    here: Estimate, sign: float, smallest: float | None, seeds: int
) -> tuple[str, str]:
    """Off 0 on the paper's side; or on the other side, or closer to 0 than the paper's size."""
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


def _ends(estimate: Estimate) -> tuple[float, float | None, float | None]:
    return estimate.value, estimate.low, estimate.high


def _log_ratio(finding: Mapping[str, Any]) -> float:
    found = finding["perplexity"]
    return math.log(found["arm"] / found["against"])


def _with(verdict: Verdict, said: str, reason: str) -> Verdict:
    return replace(verdict, verdict=said, reason=reason)

"""How often a study errs that ends by rule (`sweep --until-decided`), and its power, by simulation.

    python benchmarks/error_rates.py --looks    # the table of docs/reading.md, in ten seconds

A study has a baseline and three arms, whose runs have a deviation of 1; its findings are the
differences of the arms to the baseline, in order. A first finding that is a slope has the same
paired t. One that is an equality asks whether the first arm is as good as the baseline, by a
quarter of the gap of the second arm to it. All is computed for many studies at once, with the looks
and levels that the report uses; a test holds it against the report's own functions.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from moebench.looks import looks
from moebench.report.infer.contrasts import EQUAL_SHARE
from moebench.report.infer.decisions import LEVEL

MOST = 16
ARMS = 3
FROM = 6  # seeds after which one may begin to look at every seed, as a report without a rule allows
EFFECTS = (1.0, 1.25, 1.5)  # of the first arm, in deviations of a run
MARGIN = 1.0  # in deviations of a run
GAP = 4.0  # of micro and global, in deviations of a run; that of docs/results.md is 5
CORRELATIONS = (-0.9, -0.5, 0.0, 0.5, 0.9)  # of the first two findings, in the search of the worst
DIFFERENCES = (0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.5, 2.0)  # in deviations of a paired one

Schedule = Sequence[tuple[int, float]]  # seeds and level of each look
RULE: Schedule = [(look.seeds, look.level) for look in looks(MOST)]
SAME: Schedule = [(seeds, LEVEL) for seeds, _ in RULE]
EVERY: Schedule = [(seeds, LEVEL) for seeds in range(FROM, MOST + 1)]
ONCE: Schedule = [(MOST, LEVEL)]


class Ends(NamedTuple):
    """How studies end.

    Attributes:
        decided: [studies, findings] which findings are told from 0; a first one that is an equality
            also where it is told to hold.
        within: [studies] where the first one lies within the margin.
        seeds: [studies] of the last look.
        equal: [studies] where the first one is an equality that is told to hold.
    """

    decided: np.ndarray
    within: np.ndarray
    seeds: np.ndarray
    equal: np.ndarray


def draw(
    studies: int, effects: Sequence[float], deviations: Sequence[float] = (1.0,) * (ARMS + 1)
) -> np.ndarray:
    """Differences to the baseline, [studies, seeds, arms], that share the baseline's chance."""
    rng = np.random.default_rng(23)
    values = rng.normal(size=(studies, MOST, len(deviations))) * np.asarray(deviations)
    return values[..., 1:] - values[..., :1] + np.asarray(effects)


def ends(
    difference: np.ndarray, schedule: Schedule, margin: float = 0.0, *, equality: bool = False
) -> Ends:
    """Look at studies until the first finding is decided, by one schedule.

    Args:
        difference: [studies, seeds, findings].
        margin: 0 for none.
        equality: whether the first finding is one, with the second difference as its gap.
    """
    from scipy.special import stdtrit

    studies, _, findings = difference.shape
    decided, within = np.zeros((studies, findings), bool), np.zeros(studies, bool)
    seeds, open_ = np.full(studies, schedule[-1][0]), np.ones(studies, bool)
    equal = np.zeros(studies, bool)
    for n, level in schedule:
        part = difference[open_, :n]
        p = 2 * np.minimum(_tail(part), _tail(-part))
        holds = np.zeros(len(part), bool)
        if equality:
            holds, p[:, 0] = _alike(part[..., 0], part[..., 1])
        told = np.logical_and.accumulate(p < level, axis=1)
        half = stdtrit(n - 1, 1 - level / 2) * part[..., 0].std(1, ddof=1) / np.sqrt(n)
        none = ~told[:, 0] & (np.abs(part[..., 0].mean(1)) + half < margin)
        now = np.flatnonzero(open_)
        decided[now], within[now], equal[now] = told, none, holds & told[:, 0]
        stops = told[:, 0] | none
        seeds[now[stops]] = n
        open_[now[stops]] = False
    return Ends(decided, within, seeds, equal)


def _tail(values: np.ndarray) -> np.ndarray:
    """The probability of so large a mean over seeds [studies, seeds, ...] if the true one is 0."""
    from scipy.special import stdtr

    n = values.shape[1]
    return stdtr(n - 1, -values.mean(1) / (values.std(1, ddof=1) / np.sqrt(n)))


def _alike(difference: np.ndarray, gap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether an equality [studies] rather holds than not, and its p.

    Args:
        difference, gap: [studies, seeds].
    """
    resolved = np.minimum(1, 2 * np.minimum(_tail(gap), _tail(-gap)))
    sides = [_tail(EQUAL_SHARE * gap + sign * difference) for sign in (1, -1)]
    equal = np.maximum(resolved, np.maximum(*sides))
    unequal = np.maximum(resolved, 2 * (1 - np.maximum(*sides)))
    return equal <= unequal, np.minimum(equal, unequal)


Counted = tuple[str, float, float]  # what is counted, its share of studies, mean seeds of a study


def _row(
    studies: int,
    name: str,
    effects: Sequence[float],
    schedule: Schedule,
    counted: Callable[[Ends], Any],
    margin: float = 0.0,
    *,
    equality: bool = False,
) -> Counted:
    found = ends(draw(studies, effects), schedule, margin, equality=equality)
    return name, float(counted(found).mean()), float(found.seeds.mean())


def rows(studies: int) -> list[Counted]:
    """Studies whose first finding is a difference, then those where it is an equality."""
    return [*_differences(studies), worst(studies), *_equalities(studies)]


def _differences(studies: int) -> list[Counted]:
    row, none = partial(_row, studies), (0.0,) * ARMS

    def first(found: Ends) -> Any:
        return found.decided[:, 0]

    def later(found: Ends) -> Any:
        return found.decided[:, 1:].any(1)

    at, shown = (MARGIN, 0.0, 0.0), (1.25, 0.0, 0.0)
    with_margin = f"margin {MARGIN:g}"
    return [
        row("error: one look at 16 seeds, at 5 %", none, ONCE, first),
        row("error: looks at 4, 8 and 16 seeds, each at 5 %", none, SAME, first),
        row(f"error: a look at every seed from {FROM} on, each at 5 %", none, EVERY, first),
        row("error: the rule", none, RULE, lambda found: found.decided.any(1)),
        row(f"error: the rule, {with_margin}", none, RULE, lambda f: f.decided.any(1), MARGIN),
        row(f"error: the rule, {with_margin}, true difference {MARGIN:g}: called none",
            at, RULE, lambda found: found.within, MARGIN),
        row(f"error: the rule, {with_margin}, true difference {MARGIN:g}: called none, or a later "
            "finding", at, RULE, lambda found: found.within | later(found), MARGIN),
        row("error: the rule, the first arm differs by 1.25: a later finding",
            shown, RULE, later),
        *(
            row(f"power: the rule, the first arm differs by {effect:g}",
                (effect, 0, 0), RULE, first)
            for effect in EFFECTS
        ),
        *(
            row(f"power: one look at 16 seeds, the first arm differs by {effect:g}",
                (effect, 0, 0), ONCE, first)
            for effect in EFFECTS
        ),
        row("no arm differs: the rule says so, margin 1.5", none, RULE, lambda f: f.within, 1.5),
    ]  # fmt: skip


def worst(studies: int) -> Counted:
    """The most errors where the margin is the true difference of the first finding.

    Over CORRELATIONS with a second finding that is none, and DIFFERENCES.
    """
    chance = np.random.default_rng(23).normal(size=(studies, MOST, 2))
    found = []
    for correlation in CORRELATIONS:
        mixed = np.array([[1, correlation], [0, np.sqrt(1 - correlation**2)]])
        for difference in DIFFERENCES:
            each = ends(chance @ mixed + [difference, 0], RULE, difference)
            found.append(((each.within | each.decided[:, 1]).mean(), each.seeds.mean()))
    name = "error: the rule, the margin is the true difference: called none, or a later finding"
    share, seeds = max(found)
    return f"{name}; the most of {len(found)} cases", float(share), float(seeds)


def _equalities(studies: int) -> list[Counted]:
    """The second finding is the gap, and the third one is of an arm that does not differ."""
    about = f"the rule, an equality with a gap of {GAP:g} and a margin of {MARGIN:g}, difference"

    def good(found: Ends) -> Any:
        return found.equal | found.within

    def not_good(found: Ends) -> Any:
        return found.decided[:, 0] & ~found.equal

    def third(found: Ends) -> Any:
        return found.decided[:, 2]

    def row(kind: str, true: float, name: str, counted: Callable[[Ends], Any]) -> Counted:
        said = f"{kind}: {about} {true:g}: called {name}"
        return _row(studies, said, (true, GAP, 0), RULE, counted, MARGIN, equality=True)

    return [
        row("error", MARGIN, "as good", good),
        row("error", MARGIN, "as good, or the third", lambda f: good(f) | third(f)),
        row("error", 0, "not as good, or the third", lambda f: not_good(f) | third(f)),
        row("power", 0, "as good", good),
        row("power", 2, "not as good", not_good),
    ]


def table(studies: int) -> str:
    lines = ["| studies with | % | seeds |", "|---|---|---|"]
    lines += [
        f"| {name} | {100 * share:.1f} | {seeds:.1f} |" for name, share, seeds in rows(studies)
    ]
    return "\n".join(lines)

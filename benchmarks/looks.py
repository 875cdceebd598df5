"""How often a study errs that ends by rule (`sweep --until-decided`), and its power, by simulation.

    python benchmarks/error_rates.py --looks    # the table of docs/reading.md, in seconds

A study has a baseline and three arms, whose runs have a deviation of 1; its findings are the
differences of the arms to the baseline, in order. All is computed for many studies at once, with
the looks and levels that the report uses; a test holds it against the report's own functions.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from moebench.looks import looks
from moebench.report.infer.decisions import LEVEL

MOST = 16
ARMS = 3
FROM = 6  # seeds after which one may begin to look at every seed, as a report without a rule allows
EFFECTS = (1.0, 1.25, 1.5)  # of the first arm, in deviations of a run
MARGIN = 1.0  # in deviations of a run

Schedule = Sequence[tuple[int, float]]  # seeds and level of each look
RULE: Schedule = [(look.seeds, look.level) for look in looks(MOST)]
SAME: Schedule = [(seeds, LEVEL) for seeds, _ in RULE]
EVERY: Schedule = [(seeds, LEVEL) for seeds in range(FROM, MOST + 1)]
ONCE: Schedule = [(MOST, LEVEL)]


class Ends(NamedTuple):
    """How studies end.

    Attributes:
        decided: [studies, findings] which findings are told from 0.
        within: [studies] where the first one lies within the margin.
        seeds: [studies] of the last look.
    """

    decided: np.ndarray
    within: np.ndarray
    seeds: np.ndarray


def draw(
    studies: int, effects: Sequence[float], deviations: Sequence[float] = (1.0,) * (ARMS + 1)
) -> np.ndarray:
    """Differences to the baseline, [studies, seeds, arms], that share the baseline's chance."""
    rng = np.random.default_rng(23)
    values = rng.normal(size=(studies, MOST, len(deviations))) * np.asarray(deviations)
    return values[..., 1:] - values[..., :1] + np.asarray(effects)


def ends(difference: np.ndarray, schedule: Schedule, margin: float = 0.0) -> Ends:
    """Look at studies until the first finding is decided, by one schedule.

    Args:
        difference: [studies, seeds, findings].
        margin: 0 for none.
    """
    from scipy.special import stdtr, stdtrit

    studies, _, findings = difference.shape
    decided, within = np.zeros((studies, findings), bool), np.zeros(studies, bool)
    seeds, open_ = np.full(studies, schedule[-1][0]), np.ones(studies, bool)
    for n, level in schedule:
        part = difference[open_, :n]
        mean, error = part.mean(1), part.std(1, ddof=1) / np.sqrt(n)
        p = 2 * stdtr(n - 1, -np.abs(mean) / error)
        told = np.logical_and.accumulate(p < level, axis=1)
        half = stdtrit(n - 1, 1 - level / 2) * error[:, 0]
        equal = ~told[:, 0] & (np.abs(mean[:, 0]) + half < margin)
        now = np.flatnonzero(open_)
        decided[now], within[now] = told, equal
        stops = told[:, 0] | equal
        seeds[now[stops]] = n
        open_[now[stops]] = False
    return Ends(decided, within, seeds)


def rows(studies: int) -> list[tuple[str, float, float]]:
    """What is counted, its share of studies, and the mean seeds of a study."""
    none = (0.0,) * ARMS

    def row(
        name: str,
        effects: Sequence[float],
        schedule: Schedule,
        wrong: Callable[[Ends], Any],
        margin: float = 0.0,
    ) -> tuple[str, float, float]:
        found = ends(draw(studies, effects), schedule, margin)
        return name, float(wrong(found).mean()), float(found.seeds.mean())

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


def table(studies: int) -> str:
    lines = ["| studies with | % | seeds |", "|---|---|---|"]
    lines += [
        f"| {name} | {100 * share:.1f} | {seeds:.1f} |" for name, share, seeds in rows(studies)
    ]
    return "\n".join(lines)

"""A study that ends by rule: at which look it is, and what its first finding has decided there.

The rule looks at the first finding of the study's order alone. It ends the study if that finding is
decided at the level of the look, or if its interval at that level lies within a margin: then there
is no difference that matters. A difference or a slope is decided where it is told from 0; both
claims read one interval, so that together they err no more often than the interval misses the
truth. An equality is decided by its own test, against a quarter of the gap of micro and global; the
margin says the same by a size that was fixed beforehand. All other findings follow in their order,
at the level of the look, and only behind a decided one: behind an interval within the margin, a
second test at the full level would add to the error. A true difference or slope of the margin or
more may be called none, or let a later finding err: both together are bounded by 1.5 times the
level. For equalities no such bound was derived (docs/reading.md has what simulations say).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from moebench.looks import Look, looks
from moebench.plans import Plan
from moebench.report.infer.contrasts import Contrast

DECIDED, WITHIN, OPEN = "decided", "no difference beyond the margin", ""


@dataclass(frozen=True)
class Rule:
    """The stopping rule of a table, at the look that its runs have reached.

    Attributes:
        margin: as in the plan.
        seeds: of the look, in order.
        void: why its level does not hold; "" if it does.
        outcome: of the look: DECIDED, WITHIN, or OPEN.
        per: what the margin is for where the first finding is a slope, such as " a doubling".
    """

    look: Look
    margin: float | None
    seeds: tuple[int, ...] = ()
    void: str = ""
    outcome: str = OPEN
    per: str = ""

    @property
    def within(self) -> bool:
        return self.outcome == WITHIN and not self.void

    @property
    def ended(self) -> bool:
        """Whether the rule ends the study here."""
        return self.outcome != OPEN or self.look.number == self.look.of


def rule_of(plans: Sequence[Plan], seeds: Iterable[int]) -> Rule | None:
    """The rule of the plans of a table; None if they have none.

    Args:
        plans: with the seeds of the look that each has reached.
        seeds: of the table.
    """
    ruled = [plan for plan in plans if plan.most_seeds]
    if not ruled:
        return None
    first = ruled[0]
    look = next(look for look in looks(first.most_seeds or 0) if look.seeds >= len(first.seeds))
    void = ""
    if any(
        (one.most_seeds, one.margin, one.seeds) != (other.most_seeds, other.margin, other.seeds)
        for one, other in pairwise(ruled)
    ):
        void = "the runs are of studies with several stopping rules; choose one by --study"
    if added := sorted({*seeds} - {*first.seeds}):
        which = ", ".join(map(str, added))
        void = void or f"seeds that are not of this look were added ({which})"
    return Rule(look, first.margin, first.seeds, void)


def outcome(
    measured: Contrast, p: float | None, look: Look, margin: float | None, size: float = 1.0
) -> str:
    """What a look decides about the first finding.

    Args:
        measured: the difference, or the slope.
        p: of its test alone; None where it has none.
        margin: None for a finding that has none, too.
        size: by which the contrast is divided to be in the margin's unit.
    """
    if p is None or measured.seeds < look.seeds:
        return OPEN
    if p < look.level:
        return DECIDED
    ends = measured.estimate(1 - look.level)
    if margin is None or ends.low is None or ends.high is None:
        return OPEN
    return WITHIN if max(abs(ends.low), abs(ends.high)) / size < margin else OPEN

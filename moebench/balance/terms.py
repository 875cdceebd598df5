"""Weighted balance terms that come and go over training, as one objective adds them up."""

from dataclasses import dataclass, field

from moebench.balance.scope import Scope


@dataclass(frozen=True)
class Term:
    """A balance loss over one scope, from one step of training to another.

    It acts after `start` steps and until `stop` steps are done, so that one term that stops at a
    step and another that starts there follow each other without a gap. With a `ramp`, its weight
    rises in a line over so many steps after a given start, and falls over as many after its stop:
    the weights of two terms that hand over to each other sum to a constant.

    Attributes:
        scope: whose f each sequence meets.
        weight: of the unscaled loss in the objective.
        start, stop: in steps done; None: from the first, to the last.
        ramp: in steps.
        domain_weights: what the part of each domain's sequences is multiplied by; None: 1.
        label: a short name, such as `micro` or `global-64`.
    """

    scope: Scope
    weight: float
    start: int | None = None
    stop: int | None = None
    ramp: int = 0
    domain_weights: tuple[float, ...] | None = None
    label: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        """The name of the term in rows and errors: its label, or else its scope."""
        return self.label or str(self.scope)

    def weight_at(self, step: int) -> float:
        """The weight in a step, counted from 1."""
        return self.weight * self._rise(step) * self._fall(step)

    def _rise(self, step: int) -> float:
        if self.start is None:
            return 1.0
        since = step - self.start
        return min(1.0, since / self.ramp) if self.ramp and since > 0 else float(since > 0)

    def _fall(self, step: int) -> float:
        if self.stop is None:
            return 1.0
        over = step - self.stop
        return max(0.0, 1 - over / self.ramp) if self.ramp and over > 0 else float(over <= 0)

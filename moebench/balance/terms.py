"""Weighted balance terms that start and stop during training; an objective adds them up."""

from dataclasses import dataclass, field

from moebench.balance.scope import Scope


@dataclass(frozen=True)
class Term:
    """A balance loss over one scope, from one step of training to another.

    It acts after `start` steps and until `stop` steps are done. If one term stops at a step and
    another starts there, there is no gap. With a `ramp`, the weight rises linearly over so many
    steps after its start, and falls over as many after its stop. The weights of two terms, one of
    which replaces the other, then sum to a constant.

    Attributes:
        scope: whose f each sequence meets.
        weight: of the unscaled loss in the objective.
        start: in steps done; None: from the first.
        stop: in steps done; None: to the last.
        ramp: in steps.
        domain_weights: factor of each domain's part of the loss; None: 1.
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

"""A step that is not finite is never applied, and no step waits for a GPU to find out."""

import math

import torch
from torch import Tensor

from moebench.errors import TrainingError
from moebench.model.transformer import MoETransformer
from moebench.train.build import State
from moebench.train.step import Objective, Outcome, weighted_terms


class FiniteCheck:
    """Stops a run at the first step whose loss or gradient is not finite.

    On a CPU each step is checked before its update. On a GPU that would make every step wait, so
    the device itself skips the update of such a step and of all later ones, and `check` finds out.

    Attributes:
        deferred: whether the device skips updates, and `check` finds out later.
        first_bad: the first step that was not finite, on the device; 0 if there was none.
    """

    def __init__(self, state: State, objective: Objective, device: torch.device) -> None:
        self.state, self.objective = state, objective
        self.deferred = device.type == "cuda"
        self.first_bad = torch.zeros((), device=device)
        self._gradients_of = 0  # the step whose gradients are in the parameters
        self._latest: tuple[int, Outcome, Tensor] | None = None

    def begin(self, step: int) -> None:
        """Note that the gradients in the parameters will be those of a step."""
        self._gradients_of = step

    def before_update(self, step: int, outcome: Outcome, norm: Tensor) -> None:
        """Refuse the update of a step that is not finite.

        Args:
            norm: of the gradient.

        Raises TrainingError.
        """
        _raise_if_not_finite(self.state.model, self.objective, outcome, norm, step)

    def defer(self, step: int, outcome: Outcome, norm: Tensor, first_bad: Tensor) -> None:
        """Note what `check` needs to know of a step, whose update the device skips by itself.

        Args:
            norm: of the gradient.
            first_bad: after this step.
        """
        self.first_bad, self._latest = first_bad, (step, outcome, norm)

    def check(self) -> None:
        """Wait for the device; before a checkpoint and an evaluation.

        Raises:
            TrainingError: for the first step that was not finite. The weights are those before it.
        """
        if not self.deferred or self._latest is None:
            return
        if not (number := int(self.first_bad.item())):
            return
        latest, outcome, norm = self._latest
        if latest == number:
            # the next step may have replaced the gradients
            model = self.state.model if self._gradients_of == number else None
            _raise_if_not_finite(model, self.objective, outcome, norm, number)
        raise TrainingError(f"step {number}: the loss or the gradient is not finite")


def _raise_if_not_finite(
    model: MoETransformer | None, objective: Objective, outcome: Outcome, norm: Tensor, step: int
) -> None:
    """Raise TrainingError naming what is not finite.

    Args:
        model: whose parameters hold the gradients; None: they are gone, and cannot be named.
    """
    terms = weighted_terms(objective, outcome)
    if math.isfinite(norm.item()) and all(map(math.isfinite, terms.values())):
        return
    for name, parameter in model.named_parameters() if model is not None else ():
        if not torch.isfinite(parameter).all():
            raise TrainingError(f"step {step}: the weight {name} is not finite")
    for name, value in terms.items():
        if not math.isfinite(value):
            raise TrainingError(f"step {step}: the {name} is {value}")
    if model is None:
        raise TrainingError(f"step {step}: the gradient is not finite")
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            raise TrainingError(f"step {step}: the gradient of {name} is not finite")
    raise TrainingError(f"step {step}: the norm of the gradient is too large for its precision")

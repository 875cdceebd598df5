"""The update of a step: clip the gradients and apply them, for several runs on a GPU together."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from moebench.balance.devices import to_device
from moebench.train.build import State
from moebench.train.finite import FiniteCheck
from moebench.train.optimizer import step_together
from moebench.train.step import Outcome

TINY = 1e-6  # keeps the clipping of a zero gradient finite, as `clip_grads_with_norm_` does


class Update(NamedTuple):
    """What the update of one run needs.

    Attributes:
        state: whose parameters hold the gradients.
        number: of the step, counted from 1.
        clip: the largest norm that the gradient may keep.
        lr: the learning rate of the step.
    """

    state: State
    finite: FiniteCheck
    outcome: Outcome
    number: int
    clip: float
    lr: float

    @property
    def gradients(self) -> list[Tensor]:
        parameters = self.state.model.parameters()
        return [parameter.grad for parameter in parameters if parameter.grad is not None]


def apply(update: Update) -> Tensor:
    """Update the parameters of one run.

    Returns:
        The norm of its gradient before clipping.

    Raises:
        TrainingError: before the update, if a loss or gradient is not finite and the check of it
            is not deferred.
    """
    if update.finite.deferred:
        return apply_together([update])[0]
    state, gradients = update.state, update.gradients
    norm = torch.nn.utils.get_total_norm(gradients)
    update.finite.before_update(update.number, update.outcome, norm)
    torch.nn.utils.clip_grads_with_norm_(state.model.parameters(), update.clip, norm)
    state.optimizer.lr = update.lr
    state.optimizer.step()
    return norm


@torch.no_grad()
def apply_together(updates: Sequence[Update]) -> list[Tensor]:
    """Update the parameters of several runs on one device, with the results of `apply` for each.

    Nothing waits for the device, which skips by itself the update of a run that is not finite.
    A further run launches three kernels: its clipping and its two groups of parameters.
    """
    gradients = [update.gradients for update in updates]
    of_each = torch.stack(torch._foreach_norm([part for own in gradients for part in own]))  # pyright: ignore
    # runs of equal shape have gradients of the same parameters
    norms = torch.linalg.vector_norm(of_each.view(len(updates), -1), dim=1)
    settings = torch.tensor([[update.number, update.clip] for update in updates], dtype=norms.dtype)
    number, clip = to_device(settings, norms.device).unbind(1)
    losses = torch.stack([update.outcome.cross_entropy for update in updates])
    before = torch.stack([update.finite.first_bad for update in updates])
    value = norms + losses
    finite = value - value == 0  # inf - inf and nan - nan are nan
    first_bad = torch.where((before > 0) | finite, before, number.to(before.dtype))
    skipped = (first_bad > 0).float()
    scales = ((norms + TINY).reciprocal() * clip).clamp(max=1)
    of_runs = [tensor.unbind() for tensor in (norms, first_bad, skipped, scales)]
    for update, own, norm, bad, skip, scale in zip(updates, gradients, *of_runs, strict=True):
        update.finite.defer(update.number, update.outcome, norm, bad)
        torch._foreach_mul_(own, scale)  # pyright: ignore
        update.state.optimizer.lr = update.lr
        # the fused update does nothing where this is 1, as with a gradient scaler
        update.state.optimizer.found_inf = skip
    step_together([update.state.optimizer for update in updates])
    return list(of_runs[0])

"""Importance and load: squared variations of what the experts of a group get.

Notation: G(x) a token's gate values, P(x) the odds that each expert is selected (`odds` in
`moebench/model/selection.py`), CV the standard deviation over experts divided by the mean.

    L = w_importance CV(sum_x G(x))^2 + w_load CV(sum_x P(x))^2     (arXiv 1701.06538, Eq. 6-11)

The sums are over the tokens of a group, by default a logical micro-batch. CV^2 is no sum over
tokens, so that no pass may split a group. A penalty of a step is the mean over its groups and over
layers. CV has the population's variance, as in tensor2tensor; Tutel's (`load_importance_loss` in
`tutel/impls/losses.py`) is that of a sample, E / (E - 1) times as large, and halves the sum.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from moebench.balance.method import Method
from moebench.balance.routing import Routing, selected_mass
from moebench.errors import ConfigError


def squared_variation(sums: Float[Tensor, "*rows experts"]) -> Float[Tensor, "*rows"]:
    """CV^2 of the values of all experts: 0 if they are even, E - 1 if one has everything."""
    mean = sums.mean(-1, keepdim=True)
    return (sums / mean - 1).square().mean(-1)


@dataclass(frozen=True)
class Importance(Method):
    """Penalties of uneven importance and load (arXiv 1701.06538).

    G are the gate values of the selected experts, which sum to 1. With `full`, they are the whole
    distribution, as in Tutel. The load has a gradient through the noise on the logits alone.

    Attributes:
        importance, load: w; 0.1 each in the source.
        full: whether G is the whole distribution.
        balance_bsz: sequences in a group; None: the sequences of a pass.
    """

    importance: float = 0.1
    load: float = 0.0
    full: int = 0
    balance_bsz: int | None = None

    @property
    def observes(self) -> frozenset[str]:  # pyright: ignore
        return frozenset({"soft_counts"}) if self.load else frozenset()

    def penalty(self, state: None, routing: Routing, total: int) -> Tensor:
        layers, sequences, experts = routing.counts.shape
        size = self.balance_bsz or sequences
        if sequences % size:
            raise ConfigError(
                f"a pass of {sequences} sequences: would split the groups of "
                f"method.options.balance_bsz={size}; make run.device_bsz, on each rank, a multiple "
                "of that"
            )
        gates = routing.prob_mass if self.full else selected_mass(routing)
        losses = []
        for weight, sums in ((self.importance, gates), (self.load, routing.soft_counts)):
            if weight:
                assert sums is not None, "router.noise gives experts their odds"
                of_group = sums.view(layers, sequences // size, size, experts).sum(2)
                losses.append(weight * squared_variation(of_group).sum(1).mean())
        groups = total / (routing.expert_index.shape[2] * size)
        return sum(losses, gates.new_zeros(())) / groups

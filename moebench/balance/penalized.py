"""Methods that add a penalty to the objective, beside the balance loss or in its place.

Some penalties need a value over other tokens, such as a load or a mean score. They take it from the
last step, over all its passes and ranks: no split of a step changes it, and no step needs a second
pass. The sources take it from the current batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from moebench.balance import penalties
from moebench.balance.groups import normalise
from moebench.balance.method import Method
from moebench.balance.routing import Routing


@dataclass(frozen=True)
class SimBal(Method):
    """Routers with orthonormal rows, see `penalties.simbal`.

    Attributes: weight: of the penalty; the source's was not found.
    """

    weight: float = 0.01

    def weight_penalty(
        self, state: None, routers: Sequence[Float[Tensor, "experts d_model"]]
    ) -> Tensor:
        return self.weight * penalties.simbal(torch.stack(list(routers)))


@dataclass(frozen=True)
class RouterOrthogonality(Method):
    """Routers whose rows point apart, see `penalties.router_orthogonality`.

    Attributes: weight: of the penalty; ERNIE 4.5 has 0.01.
    """

    weight: float = 0.01

    def weight_penalty(
        self, state: None, routers: Sequence[Float[Tensor, "experts d_model"]]
    ) -> Tensor:
        return self.weight * penalties.router_orthogonality(torch.stack(list(routers)))


class MeanState(NamedTuple):
    """Attributes: mean: [layers, experts] score of each expert in the last step."""

    mean: Float[Tensor, "layers experts"]


@dataclass(frozen=True)
class Specialize(Method):
    """Experts whose outputs are apart and scores that vary (arXiv 2505.22323, Eq. 5-8).

    The source adds beta L_o + gamma L_v to its balance loss; see `penalties.overlap` and
    `penalties.score_variance`. Both are means over tokens and layers here, where it has sums.

    Attributes:
        orthogonality: beta; the source's was not found.
        variance: gamma; the source's was not found.
    """

    orthogonality: float = 1e-3
    variance: float = 1e-3

    State: ClassVar[type] = MeanState
    observes: ClassVar[frozenset[str]] = frozenset({"scores", "outputs"})

    def begin(self, layers: int, experts: int, device: torch.device | None = None) -> MeanState:
        return MeanState(torch.full((layers, experts), 1 / experts, device=device))

    def penalty(self, state: MeanState, routing: Routing, total: int) -> Tensor:
        assert routing.scores is not None
        assert routing.outputs is not None
        overlaps = penalties.overlap(
            routing.outputs.flatten(0, 2), routing.expert_index.flatten(0, 2) >= 0
        )
        apart = overlaps.sum() / (total * len(routing.scores))
        varied = penalties.score_variance(routing.scores, total, mean=state.mean)
        return self.orthogonality * apart + self.variance * varied

    def update(
        self, state: MeanState, routing: Routing, mask: Bool[Tensor, "layers experts"] | None = None
    ) -> MeanState:
        assert routing.scores is not None
        return MeanState(routing.scores.mean((1, 2)).float())


class FrequencyState(NamedTuple):
    """Attributes: frequency: [layers, experts] f of the last step; uniform at first."""

    frequency: Float[Tensor, "layers experts"]


@dataclass(frozen=True)
class LoadErrorInjection(Method):
    """The load's error added to the gradient of every token's logits, see `penalties`.

    Attributes:
        weight: lambda.
        tau: the largest error that is injected.
    """

    weight: float = 1e-5
    tau: float = 1.0

    State: ClassVar[type] = FrequencyState
    observes: ClassVar[frozenset[str]] = frozenset({"logits"})

    def begin(
        self, layers: int, experts: int, device: torch.device | None = None
    ) -> FrequencyState:
        return FrequencyState(torch.full((layers, experts), 1 / experts, device=device))

    def penalty(self, state: FrequencyState, routing: Routing, total: int) -> Tensor:
        assert routing.logits is not None
        mass = routing.logits.sum(2)
        return self.weight * penalties.injected_load_error(
            state.frequency[:, None], mass, total, tau=self.tau
        )

    def update(
        self,
        state: FrequencyState,
        routing: Routing,
        mask: Bool[Tensor, "layers experts"] | None = None,
    ) -> FrequencyState:
        return FrequencyState(normalise(routing.counts.sum(1)))


class ReMoEState(NamedTuple):
    """What ReMoE carries.

    Attributes:
        frequency: [layers, experts] f of the last step; uniform at first.
        weight: lambda.
    """

    frequency: Float[Tensor, "layers experts"]
    weight: Float[Tensor, ""]


@dataclass(frozen=True)
class ReMoE(Method):
    """An L1 penalty of ReLU gates whose weight keeps k experts a token (arXiv 2412.14711).

    See `penalties.relu_l1` and `penalties.adapted`.

    Attributes:
        start: lambda of the first step.
        factor: by which lambda grows or falls in a step.
        top_k: experts a token to aim for.
    """

    start: float = 1e-8
    factor: float = 1.2
    top_k: int = 2

    State: ClassVar[type] = ReMoEState
    observes: ClassVar[frozenset[str]] = frozenset({"scores"})

    def begin(self, layers: int, experts: int, device: torch.device | None = None) -> ReMoEState:
        uniform = torch.full((layers, experts), 1 / experts, device=device)
        return ReMoEState(uniform, torch.tensor(self.start, device=device))

    def penalty(self, state: ReMoEState, routing: Routing, total: int) -> Tensor:
        assert routing.scores is not None
        mass = routing.scores.sum(2)
        return state.weight * penalties.relu_l1(state.frequency[:, None], mass, total)

    def update(
        self,
        state: ReMoEState,
        routing: Routing,
        mask: Bool[Tensor, "layers experts"] | None = None,
    ) -> ReMoEState:
        assert routing.scores is not None
        layers, sequences, tokens, _ = routing.scores.shape
        counts = routing.counts.sum(1)
        active = counts.sum().float() / (layers * sequences * tokens)
        used = normalise(counts).where(counts.sum(-1, keepdim=True) > 0, state.frequency)
        weight = penalties.adapted(state.weight, active, self.top_k, factor=self.factor)
        return ReMoEState(used, weight)

    def metrics(self, state: ReMoEState) -> dict[str, Tensor]:
        return {"weight": state.weight}

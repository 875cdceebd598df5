"""What a method of balancing is: where it may act, and what it carries from step to step.

A method is a frozen dataclass whose fields are its options. It can act in four places:

    selection   `steering`: a bias, a factor and a mask for the scores that experts are selected by;
                `shift`: what is added to them token by token, from earlier tokens;
                `assign`: the selection itself, for a whole logical group of tokens
    objective   `penalty`: a term of the loss from what routers did in a pass;
                `weight_penalty`: a term from the routers' weights alone;
                `expert_penalty`: a term from the weights of routers and experts
    after       `update`: the state for the next step, from the routing of the whole step

The state of a method is a NamedTuple of tensors. The training loop owns it: it calls `begin` once
and `update` after each optimizer step, and saves the state in checkpoints. Evaluation, counting
passes and skipped steps never change it. All functions are pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moebench.balance.routing import Routing
from moebench.methods import declared


class Steering(NamedTuple):
    """Inputs of the forward pass beside the tokens, so that the model itself has no state.

    Experts are selected by `scores * factor + bias`, and weighted by the gate alone.

    Attributes:
        bias: [layers, experts] fp32; None: 0.
        factor: [layers, experts] fp32; None: 1.
        mask: [layers, experts] False for an inactive expert, which has probability 0 and gets no
            tokens; None: all are active.
        noise: [sequences] keys of the step's draws for each sequence; None: nothing is drawn.
        forced: [first layers, sequences, tokens, slots] experts that a token is sent to, whatever
            the router's scores, and -1 in an empty slot; None: the scores decide. The gate weighs
            them.
    """

    bias: Float[Tensor, "layers experts"] | None = None
    factor: Float[Tensor, "layers experts"] | None = None
    mask: Bool[Tensor, "layers experts"] | None = None
    noise: Int[Tensor, " sequences"] | None = None
    forced: Int[Tensor, "layers sequences tokens slots"] | None = None

    def of(self, own: slice) -> "Steering":
        """The steering of some of the step's sequences."""
        return self._replace(
            noise=None if self.noise is None else self.noise[own],
            forced=None if self.forced is None else self.forced[:, own],
        )

    def layer(self, number: int) -> "Steering":
        """The steering of one layer: the fields of layers lose that axis."""
        forced = self.forced
        if forced is not None:
            forced = forced[number] if number < len(forced) else None
        return self._replace(
            forced=forced,
            **{
                name: value[number]
                for name in ("bias", "factor", "mask")
                if (value := getattr(self, name)) is not None
            },
        )


def merged(parts: Sequence[Steering]) -> Steering:
    """The steering of several methods: biases add, factors multiply, masks are combined by AND."""
    whole = Steering()
    for part in parts:
        for name, join in (("bias", torch.add), ("factor", torch.mul), ("mask", torch.logical_and)):
            one, other = getattr(whole, name), getattr(part, name)
            if other is not None:
                whole = whole._replace(**{name: other if one is None else join(one, other)})
    return whole


@dataclass(frozen=True)
class Method:
    """Base class of methods: it does nothing, and a method overrides what it needs.

    Class attributes:
        State: the NamedTuple of its state; None: it has none.
        observes: the optional fields of `Routing` that it reads, of `logits`, `scores`, `outputs`
            and `soft_counts`.
    """

    State: ClassVar[type | None] = None
    observes: ClassVar[frozenset[str]] = frozenset()

    @property
    def by_logits(self) -> bool:
        """Whether experts are selected by the router's logits in place of the gate's scores."""
        return False

    def begin(self, layers: int, experts: int, device: torch.device | None = None) -> Any:
        """The state before the first step; None for a method without state."""
        return None

    def steering(self, state: Any) -> Steering:
        """The steering of the forward passes of a step, and of evaluations after the last step."""
        return Steering()

    def shift(
        self, scores: Float[Tensor, "sequences tokens experts"], top_k: int
    ) -> Float[Tensor, "sequences tokens experts"]:
        """What is added to the scores by which experts are selected, in training and evaluation.

        The shift of a token may depend on its own scores and those of earlier tokens of its
        sequence, and on nothing else.
        """
        raise NotImplementedError

    def most(self, top_k: int, experts: int) -> int | None:
        """The most experts a token may get from `assign`; None: there is no `assign`."""
        return None

    def assignments(self, tokens: int, top_k: int, experts: int) -> int:
        """The most assignments that `assign` makes in a group of this many tokens."""
        return tokens * top_k

    def assign(
        self,
        logits: Float[Tensor, "groups tokens experts"],
        scores: Float[Tensor, "groups tokens experts"],
        top_k: int,
    ) -> Bool[Tensor, "groups tokens experts"]:
        """True where an expert gets a token. It replaces top-k, in training only.

        A group is `router.group_bsz` consecutive sequences. Evaluation takes each token's own
        top-k of the scores.

        Args:
            logits: the routers'; without gradient.
            scores: the output of the gate for them.
        """
        raise NotImplementedError

    def penalty(self, state: Any, routing: Routing, total: int) -> Tensor | None:
        """The weighted term that a pass adds to the objective; None: nothing.

        The penalties of passes and ranks are summed. A penalty must therefore be a sum over the
        tokens of the pass (or over its logical groups, which no pass splits), divided by a count
        of the whole step.

        Args:
            state: after the last step.
            routing: of this pass, with gradients in `prob_mass`, `weights` and the
                fields of `observes`.
            total: tokens of the whole step.
        """
        return None

    @property
    def penalizes(self) -> bool:
        """Whether the method adds anything to the objective."""
        own = type(self)
        hooks = "penalty", "weight_penalty", "expert_penalty"
        return any(getattr(own, hook) is not getattr(Method, hook) for hook in hooks)

    def weight_penalty(
        self, state: Any, routers: Sequence[Float[Tensor, "experts d_model"]]
    ) -> Tensor | None:
        """The weighted term that the routers' weights add to a step's objective; None: nothing."""
        return None

    def expert_penalty(
        self,
        state: Any,
        routers: Sequence[Float[Tensor, "experts d_model"]],
        experts: Sequence[Float[Tensor, "computing d_model width"]],
        generator: torch.Generator,
    ) -> Tensor | None:
        """The weighted term of the weights of routers and experts in a step; None: nothing.

        Args:
            routers: the weights of each router.
            experts: of the same layers, the first matrix of each expert; its first half is the
                gate of the SwiGLU.
            generator: of the step's random draws, on the CPU.
        """
        return None

    def update(
        self, state: Any, routing: Routing, mask: Bool[Tensor, "layers experts"] | None
    ) -> Any:
        """The state after a step.

        Args:
            state: before it.
            routing: of the whole step, over all passes and ranks, detached: `counts` are [layers,
                sequences, experts] in the order of the data.
            mask: the mask of the step's steering.
        """
        return state

    def metrics(self, state: Any) -> dict[str, Tensor]:
        """The metrics to log after a step, as `method/NAME`."""
        return {}


def make_method(name: str, options: Mapping[str, float]) -> Method | None:
    """Make the method of a name, with all of its options; None for `loss`.

    Raises ConfigError for an undeclared name.
    """
    method = declared(name)
    if method.target is None:
        return None
    whole = {key for key, option in method.options.items() if option.whole}
    return method.load()(**{k: int(v) if k in whole else v for k, v in options.items()})

"""How routers select and weigh experts: the settings that all layers of a model share."""

from dataclasses import dataclass
from typing import Literal

from moebench.balance import Method
from moebench.model.gate import Name
from moebench.model.selection import Worth

Form = Literal["linear", "cosine", "mlp"]
Drop = Literal["probability", "weight", "position"]
Counts = Literal["scores", "grouped", "biased", "first"]


@dataclass(frozen=True)
class Gating:
    """How routers select experts, the same in all layers.

    Attributes:
        gate: from logits to scores, see `gated`.
        form: of the logits: `linear`, W x (arXiv 2501.11873); `cosine`, exp(t) cos(P x, w_i)
            (X-MoE, arXiv 2204.09179; t as in Tutel); `mlp`, W relu(H x).
        bias: whether a learned bias is added to the logits; it starts at 0.
        softcap: c of c tanh(z / c), which keeps logits between -c and c (Laguna); None: no cap.
        renormalize: whether the weights of the selected experts are scaled to sum to 1.
        shared_gate: number of shared experts whose logits, from further rows of the router, share
            the sum to which weights are scaled (Inkling); 0: shared experts have a weight of 1.
        scale: factor of the final weights (DeepSeek-V3).
        expert_scale: whether each expert has a learned factor of its final weights, 1 at first
            (Gemma 4).
        jitter: in training, the router's input is multiplied by U(1 - jitter, 1 + jitter) (Switch).
        noise: in training, noise * N(0, 1) * softplus(V x) is added to logits (arXiv 1701.06538,
            Eq. 4, with noise 1).
        expert_groups, top_groups: number of groups of experts, and how many of them each token's
            experts come from (DeepSeek-V3).
        group_worth: by what the groups are ranked, see `within_top_groups`.
        random: experts are drawn uniformly, and weighted by the gate.
        round_robin: experts are taken in turn, and weighted by the gate, see `in_turn`.
        capacity_factor: the most assignments of a logical group that an expert takes, as a multiple
            of its even share; the others are dropped. None: no limit.
        drop: which assignments are kept: those of the highest score (`probability`) or final
            `weight`, or the first by `position`.
        group_bsz: sequences in a logical group, within which experts are assigned and dropped.
        method: assigns the experts in training; None: top-k.
        shift: shifts the scores token by token; None: nothing does.
        threshold: whether a token goes to all experts whose moved score is above 0; where the bias
            is not a number yet, to its top-k.
        partial: whether prescribed experts may be -1, where a slot is empty.
        by_logits: whether experts are selected by logits in place of the gate's scores.
        counts: the selection that f counts: the top-k of all `scores`, that within the best groups
            (`grouped`), the actual one, with the bias in it (`biased`), or each token's `first`
            choice alone (GShard).
        observes: optional fields of `Routing` to fill in.
    """

    gate: Name = "softmax"
    form: Form = "linear"
    bias: bool = False
    softcap: float | None = None
    renormalize: bool = True
    shared_gate: int = 0
    scale: float = 1.0
    expert_scale: bool = False
    jitter: float = 0.0
    noise: float = 0.0
    expert_groups: int = 1
    top_groups: int = 1
    group_worth: Worth = "top_two"
    random: bool = False
    round_robin: bool = False
    capacity_factor: float | None = None
    drop: Drop = "probability"
    group_bsz: int = 1
    method: Method | None = None
    shift: Method | None = None
    threshold: bool = False
    partial: bool = False
    by_logits: bool = False
    counts: Counts = "scores"
    observes: frozenset[str] = frozenset()

    @property
    def draws(self) -> bool:
        """Whether random numbers are drawn in training."""
        return self.random or self.jitter > 0 or self.noise > 0

    @property
    def groups(self) -> bool:
        """Whether the selection of a token depends on other tokens of its logical group."""
        return self.method is not None or self.capacity_factor is not None

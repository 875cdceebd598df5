"""Routers: from hidden states to logits, scores, a selection of experts, and its routing."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moebench.balance import Method, Routing, Steering, counted, moved_from, observe
from moebench.balance.assignment import capacity
from moebench.balance.routing import PADDING
from moebench.balance.top_experts import top_experts
from moebench.errors import ConfigError
from moebench.model import noise
from moebench.model.cpu_products import linear
from moebench.model.gate import Gated, gated, of_shared
from moebench.model.gating import Counts, Drop, Form, Gating
from moebench.model.selection import in_turn, odds, of_mask, within_capacity, within_top_groups

__all__ = ["Counts", "Drop", "Form", "Gating", "Router", "Selection", "steered"]

MAX_TEMPERATURE = math.log(100)  # of a cosine router, as in Tutel


class Selection(NamedTuple):
    """The experts of each token, their weights, and the routing for the balance loss.

    Attributes:
        expert_index: [sequences, tokens, slots], always an expert, even in an empty slot, whose
            weight is 0.
        weights: [sequences, tokens, slots] of the selected experts' outputs.
        routing: of this layer, with a layer axis of length 1.
        selected: [sequences, tokens, slots] False for an empty slot; None: none is empty.
        assignments: an upper bound of the filled slots of all tokens; None: all may be filled.
        shared: [sequences, tokens, shared] weights of the shared experts' outputs; None: 1.
    """

    expert_index: Int[Tensor, "sequences tokens slots"]
    weights: Float[Tensor, "sequences tokens slots"]
    routing: Routing
    selected: Bool[Tensor, "sequences tokens slots"] | None = None
    assignments: int | None = None
    shared: Float[Tensor, "sequences tokens shared"] | None = None


class Router(nn.Module):
    """One gate over all experts, and the selection of some for each token.

    Args:
        d_model: width of the hidden states.
        num_experts: number of experts.
        top_k: experts for each token.
        gating: how experts are selected.
        layer: number of the layer; each layer has random draws of its own.
    """

    def __init__(
        self,
        d_model: int,
        num_experts: int,
        top_k: int,
        gating: Gating | None = None,
        layer: int = 0,
    ) -> None:
        super().__init__()
        self.top_k, self.layer = top_k, layer
        self.gating = gating = gating or Gating()
        width = max(1, num_experts // 2) if gating.form == "cosine" else d_model
        self.weight = nn.Parameter(torch.empty(num_experts, width))
        if gating.form != "linear":
            self.hidden = nn.Parameter(torch.empty(width, d_model))
        if gating.form == "cosine":
            self.temperature = nn.Parameter(torch.empty(1))
        if gating.bias:
            self.bias = nn.Parameter(torch.empty(num_experts))
        if gating.noise:
            self.spread = nn.Parameter(torch.empty(num_experts, d_model))
        if gating.shared_gate:
            self.shared = nn.Parameter(torch.empty(gating.shared_gate, d_model))
        if gating.expert_scale:
            self.scale = nn.Parameter(torch.empty(num_experts))

    def forward(
        self,
        x: Float[Tensor, "sequences tokens d_model"],
        steering: Steering | None = None,
        *,
        training: bool = False,
    ) -> Selection:
        """Select experts. Logits, scores and sums are fp32, or fp64 in an fp64 model.

        Args:
            steering: of this layer; None: nothing steers.
            training: whether jitter and noise act, and a method assigns experts.
        """
        steering, gating = steering or Steering(), self.gating
        # in evaluation, top-k replaces a method, and needs no groups
        grouped = gating.groups and (training or gating.capacity_factor is not None)
        if grouped and x.shape[0] % gating.group_bsz:
            raise ConfigError(
                f"a pass of {x.shape[0]} sequences: would split the router's logical groups of "
                f"{gating.group_bsz}; make run.device_bsz, on each rank, a multiple of that"
            )
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        key = steering.noise if training else None
        x = self._jittered(x, key)
        clean = self._logits(x)
        spread = self._spread(x) if key is not None and gating.noise else None
        if spread is None:
            return self._selected(x, clean, steering, training=training)
        logits = clean + gating.noise * self._normal(x, key) * spread
        selection = self._selected(x, logits, steering, training=training)
        if "soft_counts" not in gating.observes:
            return selection
        sums = odds(clean, logits, gating.noise * spread, self.top_k).sum(1)[None]
        return selection._replace(routing=selection.routing._replace(soft_counts=sums))

    def _selected(
        self, x: Tensor, logits: Tensor, steering: Steering, *, training: bool
    ) -> Selection:
        gating = self.gating
        gate = gated(gating.gate, logits, steering.mask, by_logits=gating.by_logits)
        if gating.shared_gate:
            shared = linear(x, self.shared.to(x.dtype))
            there = logits
            if steering.mask is not None:
                there = logits.masked_fill(~steering.mask, -math.inf)
            gate = gate._replace(shared=of_shared(gating.gate, self._capped(shared), there))
        if training and gating.method is not None:
            return self._assigned(gating.method, logits, gate)
        if steering.forced is not None:
            return self._prescribed(logits, gate, steering)
        scores = gate.scores
        if gating.random:
            scores = self._drawn(x, steering.noise)
        elif gating.round_robin:
            scores = in_turn(logits, self.top_k)
        moved = steered(scores, steering)
        if gating.shift is not None:
            moved = moved + gating.shift.shift(scores.detach(), self.top_k)
        if gating.threshold:
            return self._above(logits, gate, moved, steering)
        slots = logits.shape[-1] if gating.gate == "relu" else self.top_k
        expert_index = self._top(moved, steering, slots)
        selection = self._weighted(logits, gate, expert_index, steering)
        routing = self._compared(selection.routing, scores.detach(), gate, steering, slots)
        return selection._replace(routing=routing)

    def _jittered(self, x: Tensor, key: Tensor | None) -> Tensor:
        jitter = self.gating.jitter
        if key is None or not jitter:
            return x
        drawn = noise.uniform(key, 3 * self.layer, x.shape[1], x.shape[2]).to(x.dtype)
        return x * (1 - jitter + 2 * jitter * drawn)

    def _logits(self, x: Tensor) -> Tensor:
        gating, weight = self.gating, self.weight.to(x.dtype)
        bias = self.bias.to(x.dtype) if gating.bias else None
        if gating.form == "linear":
            logits = linear(x, weight, bias)
        elif gating.form == "mlp":
            logits = linear(linear(x, self.hidden.to(x.dtype)).relu(), weight, bias)
        else:
            low = F.normalize(linear(x, self.hidden.to(x.dtype)), dim=-1)
            scale = self.temperature.to(x.dtype).clamp(max=MAX_TEMPERATURE).exp()
            logits = scale * linear(low, F.normalize(weight, dim=-1))
            logits = logits if bias is None else logits + bias
        return self._capped(logits)

    def _capped(self, logits: Tensor) -> Tensor:
        cap = self.gating.softcap
        return logits if cap is None else cap * (logits / cap).tanh()

    def _spread(self, x: Tensor) -> Tensor:
        """The deviation of each logit's noise, but for the factor `noise`."""
        return F.softplus(linear(x, self.spread.to(x.dtype)))

    def _normal(self, x: Tensor, key: Tensor | None) -> Tensor:
        assert key is not None
        experts = self.weight.shape[0]
        return noise.normal(key, 3 * self.layer + 1, x.shape[1], experts).to(x.dtype)

    def _drawn(self, x: Tensor, key: Tensor | None) -> Tensor:
        assert key is not None, "a random router needs the keys of its draws"
        experts = self.weight.shape[0]
        return noise.uniform(key, 3 * self.layer + 2, x.shape[1], experts).to(x.dtype)

    def _top(
        self, scores: Tensor, steering: Steering, slots: int, *, grouped: bool = True
    ) -> Tensor:
        """The available experts of the highest scores, within the best groups if `grouped`."""
        if steering.mask is not None:
            scores = scores.masked_fill(~steering.mask, -math.inf)
        if grouped and self.gating.expert_groups > 1:
            groups = self.gating.expert_groups, self.gating.top_groups
            scores = within_top_groups(scores, *groups, self.gating.group_worth, self.top_k)
        return top_experts(scores, slots)

    def _assigned(self, method: Method, logits: Tensor, gate: Gated) -> Selection:
        sequences, tokens, experts = logits.shape
        size = self.gating.group_bsz * tokens
        mask = method.assign(
            logits.detach().reshape(-1, size, experts),
            gate.scores.detach().reshape(-1, size, experts),
            self.top_k,
        ).view(sequences, tokens, experts)
        most = method.most(self.top_k, experts) or self.top_k
        expert_index, selected = of_mask(mask, gate.scores.detach(), most)
        number = method.assignments(size, self.top_k, experts) * (
            sequences // self.gating.group_bsz
        )
        selection = self._weighted(logits, gate, expert_index, Steering(), selected)
        own_index = top_experts(gate.scores, self.top_k)
        moved = moved_from(own_index, selection.routing.expert_index[0])
        own_index = own_index[..., :1] if self.gating.counts == "first" else own_index
        routing = selection.routing._replace(
            own_index=own_index[None],
            own_counts=counted(own_index, experts)[None],
            moved=moved[None],
        )
        return selection._replace(routing=routing, assignments=number)

    def _above(self, logits: Tensor, gate: Gated, moved: Tensor, steering: Steering) -> Selection:
        """All experts whose moved score is above 0; of those without a threshold, the top-k."""
        known = moved.isfinite()
        order = moved.where(known, gate.scores.detach()).topk(logits.shape[-1], dim=-1)
        best = torch.arange(logits.shape[-1], device=logits.device) < self.top_k
        there = torch.where(known.gather(-1, order.indices), order.values > 0, best)
        selection = self._weighted(logits, gate, order.indices, steering, there)
        return selection._replace(assignments=order.indices.numel())

    def _prescribed(self, logits: Tensor, gate: Gated, steering: Steering) -> Selection:
        """Given experts. In further layers, a bias may move what f counts; here, nothing."""
        assert steering.forced is not None
        expert_index, there = steering.forced.long(), None
        if self.gating.partial:
            expert_index, there = expert_index.clamp(min=0), expert_index >= 0
        selection = self._weighted(logits, gate, expert_index, steering, there)
        if steering.bias is None and steering.factor is None:
            return selection
        routing = selection.routing
        routing = routing._replace(moved=torch.zeros_like(routing.counts[..., 0]))
        if self.gating.counts != "biased":
            routing = routing._replace(own_index=routing.expert_index, own_counts=routing.counts)
        return selection._replace(routing=routing)

    def _compared(
        self, routing: Routing, scores: Tensor, gate: Gated, steering: Steering, slots: int
    ) -> Routing:
        """The routing with the selection that f counts, where that is not the actual one.

        Under a bias or factor, also with the number of assignments that it moved.
        """
        gating, own_index = self.gating, None
        shifted = gating.shift is not None
        if shifted or steering.bias is not None or steering.factor is not None:
            unbiased = self._top(scores, steering, slots)
            moved = moved_from(unbiased, routing.expert_index[0])
            routing = routing._replace(moved=moved[None])
            own_index = None if gating.counts == "biased" else unbiased
        if gating.counts == "scores" and gating.top_groups < gating.expert_groups:
            own_index = self._top(scores, steering, slots, grouped=False)
        if gating.counts == "first":
            own_index = self._top(scores, steering, 1, grouped=False)
        if own_index is None:
            return routing
        there = _with_a_share(gating, gate, own_index)
        counts = counted(own_index, scores.shape[-1], there)
        own_index = own_index if there is None else own_index.where(there, PADDING)
        return routing._replace(own_index=own_index[None], own_counts=counts[None])

    def _weighted(
        self,
        logits: Tensor,
        gate: Gated,
        expert_index: Tensor,
        steering: Steering,
        selected: Tensor | None = None,
    ) -> Selection:
        gating, experts = self.gating, logits.shape[-1]
        there = _with_a_share(gating, gate, expert_index)
        if there is not None:
            selected = there if selected is None else selected & there
        if steering.mask is not None:
            logits = logits.masked_fill(~steering.mask, -math.inf)
        routing = observe(logits, gate.probs, expert_index, selected=selected)
        known = routing.weights if selected is None and gate.values is gate.probs else None
        weights, shared = self._weights(gate, expert_index, selected, known)
        if gating.capacity_factor is not None:
            priority = {
                "probability": gate.scores.gather(-1, expert_index),
                "weight": weights,
                "position": None,
            }[gating.drop]
            kept = self._kept(expert_index, selected, priority, experts)
            filled = torch.ones_like(kept) if selected is None else selected
            dropped = (filled & ~kept).sum((1, 2))[None]
            rows = self._capacity(logits.shape[1], experts) * experts / gating.group_bsz
            reserved = weights.new_full((1, len(weights)), rows)
            weights = weights * kept
            routing = routing._replace(dropped=dropped, reserved=reserved)
        observable = {"logits": logits, "scores": gate.scores}
        routing = routing._replace(
            **{name: value[None] for name, value in observable.items() if name in gating.observes}
        )
        assignments = expert_index.numel() if gating.gate == "relu" else None
        return Selection(expert_index, weights, routing, selected, assignments, shared)

    def _weights(
        self,
        gate: Gated,
        expert_index: Tensor,
        selected: Tensor | None,
        known: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """The final weights of the selected experts, and those of the shared ones in the gate.

        Args:
            known: [1, sequences, tokens, slots] the gate's values of the experts, if gathered.
        """
        gating, shared = self.gating, gate.shared
        weights = gate.values.gather(-1, expert_index) if known is None else known.squeeze(0)
        weights = weights if selected is None else weights * selected
        if gating.renormalize or gating.gate == "topk_softmax":
            total = weights.sum(-1, keepdim=True)
            total = total if shared is None else total + shared.sum(-1, keepdim=True)
            total = total if selected is None else total.where(total > 0, 1)
            weights = weights / total
            shared = None if shared is None else shared / total
        if gating.scale != 1:
            weights = gating.scale * weights
            shared = None if shared is None else gating.scale * shared
        if gating.expert_scale:
            weights = weights * self.scale.to(weights.dtype)[expert_index]
        return weights, shared

    def _capacity(self, tokens: int, experts: int) -> int:
        """Assignments of a group that an expert keeps."""
        factor = self.gating.capacity_factor
        assert factor is not None
        return capacity(factor, self.gating.group_bsz * tokens, self.top_k, experts)

    def _kept(
        self, expert_index: Tensor, selected: Tensor | None, priority: Tensor | None, experts: int
    ) -> Tensor:
        gating, (sequences, tokens, slots) = self.gating, expert_index.shape
        size = gating.group_bsz * tokens
        grouped = expert_index.reshape(-1, size, slots)
        filled = torch.ones_like(grouped, dtype=torch.bool)
        filled = filled if selected is None else selected.view_as(grouped)
        if priority is not None:
            priority = priority.detach().view_as(grouped)
        most = self._capacity(tokens, experts)
        kept = within_capacity(grouped, filled, priority, experts, most)
        return kept.view(sequences, tokens, slots)


def _with_a_share(gating: Gating, gate: Gated, index: Tensor) -> Tensor | None:
    """False where the gate gives an expert no score at all; None: such a gate is not in use."""
    if gating.gate not in ("sparsemax", "relu"):
        return None
    return gate.values.detach().gather(-1, index) > 0


def steered(
    scores: Float[Tensor, "sequences tokens experts"], steering: Steering
) -> Float[Tensor, "sequences tokens experts"]:
    """The values that experts are selected by: scores * factor + bias, without gradient."""
    moved = scores.detach()
    moved = moved if steering.factor is None else moved * steering.factor
    return moved if steering.bias is None else moved + steering.bias

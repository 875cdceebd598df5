"""From hidden states to experts: logits, a distribution, a selection."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from moebench.balance import Routing, Steering, observe


class Selection(NamedTuple):
    """The experts of each token and their weights, and what that says for balancing.

    Attributes:
        expert_index: [sequences, tokens, top_k].
        weights: [sequences, tokens, top_k], what each selected expert's output is scaled by.
        routing: of this layer, with a layer axis of length 1.
    """

    expert_index: Int[Tensor, "sequences tokens top_k"]
    weights: Float[Tensor, "sequences tokens top_k"]
    routing: Routing


class Router(nn.Module):
    """One linear gate, softmax over all experts, then top-k (arXiv 2501.11873, Eq. 1).

    Args:
        d_model: width of the hidden states.
        num_experts: experts to choose from.
        top_k: experts that each token gets.
        renormalize: whether the selected weights are scaled to sum to 1.
    """

    def __init__(self, d_model: int, num_experts: int, top_k: int, *, renormalize: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, d_model))
        self.top_k = top_k
        self.renormalize = renormalize

    def forward(
        self, x: Float[Tensor, "sequences tokens d_model"], steering: Steering | None = None
    ) -> Selection:
        """Select experts. Logits, distribution and sums are fp32, or fp64 in an fp64 model.

        Args:
            steering: of this layer; None: nothing steers.
        """
        wide = torch.promote_types(x.dtype, torch.float32)
        router_logits = F.linear(x.to(wide), self.weight.to(wide))
        router_probs = router_logits.softmax(-1)
        steering = steering or Steering()
        if steering.bias is None and steering.factor is None:
            weights, expert_index = router_probs.topk(self.top_k, dim=-1)
            routing = observe(router_logits, router_probs, expert_index)
        else:
            moved = router_probs.detach()
            moved = moved if steering.factor is None else moved * steering.factor
            moved = moved if steering.bias is None else moved + steering.bias
            expert_index = moved.topk(self.top_k, dim=-1).indices
            weights = router_probs.gather(-1, expert_index)
            own = router_probs.detach().topk(self.top_k, dim=-1).indices
            routing = observe(router_logits, router_probs, expert_index)
            of_own = observe(router_logits, router_probs, own)
            routing = routing._replace(own_index=of_own.expert_index, own_counts=of_own.counts)
        if self.renormalize:
            weights = weights / weights.sum(-1, keepdim=True)
        return Selection(expert_index, weights, routing)

"""The balance loss as the paper writes it, and the z-loss.

Notation, for one layer: E experts, tokens t of sequence s, f_s the selection frequency that
sequence s meets, p_t the router's distribution, m_s = sum over t of p_t, P the mean of all p_t.

    LBL = E * sum_i f_i P_i = E * sum_s <f_s, m_s> / sum of m           (arXiv 2501.11873, Eq. 2-6)

f is detached, so the gradient flows through P alone: dLBL/dz_t = (E / T) p_t * (f - <f, p_t>). It
is 1 where f or P is uniform, and is not bounded below by 1.
"""

from jaxtyping import Float
from torch import Tensor

from moebench.balance.routing import Routing


def balance_loss(
    frequency: Float[Tensor, "layers sequences experts"],
    prob_mass: Float[Tensor, "layers sequences experts"],
    *,
    total: int | None = None,
) -> Float[Tensor, ""]:
    """Mean over layers of the load-balancing loss, unscaled; 1 when f or P is uniform.

    The product is taken in each layer and each group before any mean: pooling layers first lets
    their imbalances cancel.

    Args:
        frequency: f of each sequence's balance group, from a scope.
        prob_mass: the routers' distributions, summed over the tokens of each sequence.
        total: tokens in the whole step where these sequences are a part of it; the losses of all
            parts then sum to the step's. None: these sequences are the step.
    """
    experts = frequency.shape[-1]
    f, m = frequency.detach(), prob_mass
    mass = m.sum((1, 2)) if total is None else total
    return (experts * (f * m).sum((1, 2)) / mass).mean()


def z_loss(routing: Routing, *, total: int | None = None) -> Float[Tensor, ""]:
    """Mean over layers and tokens of logsumexp(router_logits)^2 (ST-MoE, Eq. 5), unscaled.

    Args:
        routing: its `logsumexp_sq` carries the gradient.
        total: as in `balance_loss`.
    """
    _, sequences, tokens, _ = routing.expert_index.shape
    return (routing.logsumexp_sq.sum(1) / (total or sequences * tokens)).mean()

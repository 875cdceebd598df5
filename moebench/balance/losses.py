"""The balance loss as the paper writes it, its conventions elsewhere, and the z-loss.

Notation, for one layer: E experts, tokens t of sequence s, f_s the selection frequency that
sequence s meets, p_t the router's distribution, m_s = sum over t of p_t, P the mean of all p_t.

    LBL = E * sum_i f_i P_i = E * sum_s <f_s, m_s> / sum of m           (arXiv 2501.11873, Eq. 2-6)

f is detached, so the gradient flows through P alone: dLBL/dz_t = (E / T) p_t * (f - <f, p_t>). It
is 1 where f or P is uniform, and is not bounded below by 1.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from moebench.balance.routing import Routing
from moebench.errors import ConfigError

Layers = Literal["mean", "sum", "pooled"]


def balance_loss(
    frequency: Float[Tensor, "layers sequences experts"],
    prob_mass: Float[Tensor, "layers sequences experts"],
    *,
    total: int | None = None,
    layers: Layers = "mean",
    weight: Float[Tensor, " sequences"] | None = None,
) -> Float[Tensor, ""]:
    """The load-balancing loss, unscaled; 1 when f or P is uniform (`layers` of them for a sum).

    The product is taken in each layer and each group before any mean, unless layers are pooled.

    Args:
        frequency: f of each sequence's balance group, from a scope.
        prob_mass: the routers' distributions, summed over the tokens of each sequence.
        total: tokens in the whole step where these sequences are a part of it; the losses of all
            parts then sum to the step's. None: these sequences are the step.
        layers: `mean` over layers; `sum` (Megatron-LM, minimind); `pooled`, where f and P are
            averaged over layers before the product, which lets the imbalances of layers cancel
            (Hugging Face).
        weight: of each sequence's part in the loss, by domain for example; None: 1.

    Raises:
        ConfigError: if the shapes of the two differ.
    """
    if frequency.shape != prob_mass.shape:
        raise ConfigError(
            f"frequency of shape {tuple(frequency.shape)}: must be that of prob_mass, "
            f"{tuple(prob_mass.shape)}"
        )
    experts = frequency.shape[-1]
    f, m = frequency.detach(), prob_mass
    if layers == "pooled":
        f, m = f.mean(0, keepdim=True), m.mean(0, keepdim=True)
    mass = m.sum((1, 2)) if total is None else total
    product = f * m if weight is None else f * m * weight[:, None]
    by_layer = experts * product.sum((1, 2)) / mass
    return by_layer.sum() if layers == "sum" else by_layer.mean()


def z_loss(routing: Routing, *, total: int | None = None) -> Float[Tensor, ""]:
    """Mean over layers and tokens of logsumexp(router_logits)^2 (ST-MoE, Eq. 5), unscaled.

    Args:
        routing: its `logsumexp_sq` carries the gradient.
        total: as in `balance_loss`.
    """
    sequences, tokens = routing.logsumexp_sq.shape[1], routing.expert_index.shape[2]
    real = sequences * tokens if routing.tokens is None else routing.tokens.sum()
    return (routing.logsumexp_sq.sum(1) / (total or real)).mean()

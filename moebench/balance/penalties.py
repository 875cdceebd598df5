"""Penalties that balance or sharpen a router beside the balance loss, or in its place.

Two kinds. Those of a forward pass are sums over tokens divided by `total`, the tokens of the whole
step, so that the losses of passes and ranks add. Those of the router's weights have no tokens, and
are added once a step. All are unscaled: a method multiplies them by its weight.

Notation: E experts, k of them a token, T tokens of the step, L layers over which means are taken,
f_e a group's selection frequency (sum 1), u_e = E f_e its utilisation (mean 1).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

EPS = 1e-6


def simbal(weight: Float[Tensor, "layers experts d_model"]) -> Float[Tensor, ""]:
    """How far the routers' rows are from orthonormal, summed over the entries: SimBal.

        ||R^T R - I||_1,  R = weight^T [d_model, experts]               (arXiv 2506.14038)

    The source also begins with orthogonal weights, which here come by this penalty alone.
    """
    return _gram_error(weight).abs().sum((1, 2)).mean()


def router_orthogonality(weight: Float[Tensor, "layers experts d_model"]) -> Float[Tensor, ""]:
    """The mean square cosine of two routers' rows: ERNIE 4.5.

    mean over the E^2 entries of (W^T W - I)^2,  columns of W of norm 1      (ERNIE's code)
    """
    unit = weight / weight.norm(dim=-1, keepdim=True).clamp(min=EPS)
    return _gram_error(unit).square().mean()


def _gram_error(weight: Tensor) -> Tensor:
    rows = weight.to(torch.promote_types(weight.dtype, torch.float32))
    eye = torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
    return rows @ rows.mT - eye


def score_variance(
    scores: Float[Tensor, "layers sequences tokens experts"],
    total: int,
    *,
    mean: Float[Tensor, "layers experts"],
) -> Float[Tensor, ""]:
    """Minus the variance of each expert's score over tokens: it makes a router discriminate.

        L_v = -sum_t sum_e (1/E) (s_te - mean_e)^2,  here / T           (arXiv 2505.22323, Eq. 7)

    With `mean` that of the same tokens the gradient is that of the variance, since deviations sum
    to 0. The source sums over a batch where this is divided by T.

    Args:
        scores: the router's, with the gradient.
        total: tokens of the whole step.
        mean: of each expert's score.
    """
    centred = scores - mean[:, None, None].detach()
    return -centred.square().mean(-1).sum((1, 2)).mean() / total


def overlap(
    outputs: Float[Tensor, "rows slots d_model"], present: Bool[Tensor, "rows slots"] | None = None
) -> Float[Tensor, " rows"]:
    """For every token, the overlap of the outputs of its experts.

        L_o of a token = sum_j sum_{k != j} |<x_j, x_k> / (<x_k, x_k> + eps) x_k|^2
                                                                    (arXiv 2505.22323, Eq. 5-6)

    the squared length of the projection of x_j on x_k, over ordered pairs of the token's experts.
    The source sums over tokens; a method divides by T.

    Args:
        outputs: of the selected experts, before they are weighted.
        present: False at a slot without an expert; None: there is none.
    """
    x = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    if present is not None:
        x = x * present[..., None]
    product = x @ x.mT
    square = product.diagonal(dim1=-2, dim2=-1)
    length = product.square() * (square / (square + EPS).square()).unsqueeze(-2)
    return length.sum((-2, -1)) - length.diagonal(dim1=-2, dim2=-1).sum(-1)


def injected_load_error(
    frequency: Float[Tensor, " layers #sequences experts"],
    logit_mass: Float[Tensor, "layers sequences experts"],
    total: int,
    *,
    tau: float = 1.0,
) -> Float[Tensor, ""]:
    """A term whose gradient in every token's logits is that token's group's load error.

        dL/dz_te = (1/T) (tanh xi / xi) rho_e,  rho = u - 1,  xi = max |rho| / tau

    A method adds lambda = 1e-5 times this (load-error injection). The source adds it to the
    gradient of each token's loss, hence 1/T here. The factor keeps the largest error below tau. The
    term moves down the logits of a crowded expert whatever the router's probability; the balance
    loss moves them in proportion to it. The value itself means nothing.

    Args:
        frequency: f of each sequence's group, from any scope, or one for all sequences.
        logit_mass: router logits summed over each sequence's tokens, with the gradient.
        total: tokens of the whole step.
    """
    return (load_error(frequency, tau) * logit_mass).sum((1, 2)).mean() / total


def load_error(
    frequency: Float[Tensor, "*rows experts"], tau: float = 1.0
) -> Float[Tensor, "*rows experts"]:
    """(tanh xi / xi) rho, see `injected_load_error`; 0 where the load is even."""
    rho = frequency.detach() * frequency.shape[-1] - 1
    xi = rho.abs().amax(-1, keepdim=True) / tau
    return rho * torch.where(xi > 0, xi.tanh() / xi.clamp(min=EPS), 1.0)


def relu_l1(
    frequency: Float[Tensor, " layers #sequences experts"],
    mass: Float[Tensor, "layers sequences experts"],
    total: int,
) -> Float[Tensor, ""]:
    """ReMoE's regulariser: the mean size of the ReLU gates, heavier for crowded experts.

        L = mean over layers of (1/T) sum_t sum_e u_e R(x_t)_e           (arXiv 2412.14711)

    Multiply it by the lambda of `adapted`. With even loads it is the L1 norm of the gates.

    Args:
        frequency: f of each sequence's group, from any scope, or one for all sequences.
        mass: ReLU gates summed over each sequence's tokens, with the gradient.
        total: tokens of the whole step.
    """
    used = frequency.detach() * frequency.shape[-1]
    return (used * mass).sum((1, 2)).mean() / total


def adapted(
    weight: Float[Tensor, ""], active: Float[Tensor, ""], top_k: int, *, factor: float = 1.2
) -> Float[Tensor, ""]:
    """ReMoE's lambda after a step: it grows while more than k experts per token are active.

        lambda <- lambda * factor^sign((1 - k/E) - sparsity),  sparsity = 1 - active / E

    (thu-ml/ReMoE `training.py`; it begins at 1e-8, with a factor of 1.2.)

    Args:
        weight: lambda of the step.
        active: experts with a gate above 0, mean over the step's tokens and layers.
    """
    return weight * factor ** (active - top_k).sign()

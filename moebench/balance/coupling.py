"""Expert-router coupling: each expert answers its own row of the router more than other rows.

Notation, for one layer: E experts, R_i the router's row of expert i, W_j the gate matrix of expert
j's SwiGLU, u a uniform draw for each entry.

    eps_i = min over j != i of |R_i - R_j| / (2 |R_i|)
    R'_i  = R_i * u,  u from U(1 - eps_i, 1 + eps_i): a token that is still nearest to R_i
    M_ij  = |R'_i W_j|: how strongly expert j answers the token of expert i
    L     = 1/E^2 sum over i != j of max(M_ij - alpha M_ii, 0) + max(M_ji - alpha M_ii, 0)
                                                                            (arXiv 2512.23447)

The draws carry no gradient. The loss is a mean over layers, and needs no tokens: no split of a
step changes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from moebench.balance.method import Method


def coupling(
    routers: Float[Tensor, "layers experts d_model"],
    gates: Float[Tensor, "layers experts d_model width"],
    draws: Float[Tensor, "layers experts d_model"],
    alpha: float = 1.0,
) -> Float[Tensor, ""]:
    """The coupling loss, unscaled, mean over layers.

    Args:
        routers: R.
        gates: W.
        draws: uniform from 0 to 1; 0.5 leaves the rows as they are.
        alpha: the share of its own answer that an expert may give another's token.
    """
    tokens = routers * (1 + (2 * draws - 1) * _radius(routers.detach())[..., None])
    answers = torch.einsum("lid,ljdw->lijw", tokens, gates).norm(dim=-1)
    own = alpha * answers.diagonal(dim1=1, dim2=2)
    over = (answers - own[:, :, None]).relu() + (answers - own[:, None, :]).relu()
    others = 1 - torch.eye(answers.shape[-1], dtype=answers.dtype, device=answers.device)
    return (over * others).mean()


def _radius(
    routers: Float[Tensor, "layers experts d_model"],
) -> Float[Tensor, "layers experts"]:
    """eps: half the distance to the nearest other row, as a share of the row's length."""
    apart = (routers[:, :, None] - routers[:, None]).norm(dim=-1)
    itself = torch.eye(routers.shape[1], dtype=torch.bool, device=routers.device)
    nearest = apart.masked_fill(itself, torch.inf).amin(-1)
    return nearest / (2 * routers.norm(dim=-1).clamp(min=1e-12))


@dataclass(frozen=True)
class Coupling(Method):
    """The coupling loss (arXiv 2512.23447), see the module.

    Attributes: weight: of the loss, 1 in the source; alpha.
    """

    weight: float = 1.0
    alpha: float = 1.0

    def expert_penalty(
        self,
        state: None,
        routers: Sequence[Float[Tensor, "experts d_model"]],
        experts: Sequence[Float[Tensor, "computing d_model width"]],
        generator: torch.Generator,
    ) -> Tensor:
        # experts without weights come last, and answer nothing
        rows = torch.stack([row[: len(own)] for row, own in zip(routers, experts, strict=True)])
        gates = torch.stack([each.chunk(2, dim=-1)[0] for each in experts])
        draws = torch.rand(rows.shape, generator=generator, dtype=rows.dtype).to(rows.device)
        return self.weight * coupling(rows, gates, draws, self.alpha)

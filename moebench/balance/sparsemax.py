"""Sparsemax: the distribution nearest to the logits, in which most experts have no share at all."""

import torch
from jaxtyping import Float
from torch import Tensor


def sparsemax(logits: Float[Tensor, "*rows experts"]) -> Float[Tensor, "*rows experts"]:
    """The Euclidean projection of each row on the simplex; differentiable where it is smooth.

        p_i = max(0, z_i - tau),  tau such that sum p = 1          (arXiv 1602.02068, Eq. 2-4)

    Its Jacobian is diag(s) - s s^T / |s| with s the 0/1 support, so an expert without a share gets
    no gradient.
    """
    # the projection does not see a shift, and large logits would lose the 1 in their sums
    z = logits - logits.detach().amax(-1, keepdim=True)
    falling = z.sort(dim=-1, descending=True).values
    total = falling.cumsum(-1)
    rank = torch.arange(1, z.shape[-1] + 1, dtype=z.dtype, device=z.device)
    size = (1 + rank * falling > total).sum(-1, keepdim=True)
    tau = (total.gather(-1, size - 1) - 1) / size
    return (z - tau).clamp(min=0)

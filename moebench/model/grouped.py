"""Many matrix products over consecutive groups of rows, in one call."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def grouped_mm(
    rows: Float[Tensor, "rows inner"],
    matrices: Float[Tensor, "groups inner outer"],
    ends: Int[Tensor, " groups"],
) -> Float[Tensor, "rows outer"]:
    """Multiply each group of rows by its own matrix; a group may be empty.

    Args:
        rows: sorted by group.
        matrices: one a group; rows of both operands must be a multiple of 16 bytes long.
        ends: where each group ends, ascending, int32, on the device of `rows`.
    """
    if rows.dtype != torch.float64:
        return F.grouped_mm(rows, matrices, offs=ends)
    # torch's kernel knows no fp64, which only tests use
    sizes = ends.diff(prepend=ends.new_zeros(1)).tolist()
    parts = zip(rows.split(sizes), matrices, strict=True)
    return torch.cat([part @ matrix for part, matrix in parts])

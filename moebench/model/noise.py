"""Numbers that depend on a key and a place alone, so that no split of a step changes them.

Each sequence of a step has a key. What is drawn for it is a hash of its key, of what it is for and
of the place in the sequence: the same bits on every device, in every pass, in a counting pass too.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

# The constants of splitmix64 (Steele, Lea and Flood 2014), as signed numbers.
GOLDEN, FIRST, SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685
BITS = 24  # of a number in fp32


def keys(
    seed: int, sequences: int, device: torch.device | None = None
) -> Int[Tensor, " sequences"]:
    """A key for each sequence of a step that has a seed; drawn on the CPU for every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2**62, (sequences,), generator=generator).to(device)


def uniform(
    key: Int[Tensor, " sequences"], purpose: int, tokens: int, width: int
) -> Float[Tensor, "sequences tokens width"]:
    """Between 0 and 1, neither of which is reached, in fp32.

    Args:
        key: of each sequence.
        purpose: what it is for; another one gives other numbers.
    """
    place = torch.arange(tokens * width, device=key.device).view(tokens, width)
    z = _mixed(key + purpose)[:, None, None] + place * GOLDEN
    return ((_mixed(z) >> (64 - BITS)) & (2**BITS - 1)).float() * 2.0**-BITS + 2.0 ** -(BITS + 1)


def normal(
    key: Int[Tensor, " sequences"], purpose: int, tokens: int, width: int
) -> Float[Tensor, "sequences tokens width"]:
    """Standard normal, in fp32."""
    return torch.erfinv(2 * uniform(key, purpose, tokens, width) - 1) * 2**0.5


def _mixed(z: Tensor) -> Tensor:
    z = (z ^ _shifted(z, 30)) * FIRST
    z = (z ^ _shifted(z, 27)) * SECOND
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, by: int) -> Tensor:
    """To the right, zeros coming in: torch's own shift brings in the sign."""
    return (z >> by) & (2 ** (64 - by) - 1)

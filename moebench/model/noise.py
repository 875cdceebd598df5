"""Random numbers by key and position, which do not depend on how a step is split.

Each sequence of a step has a key. A number drawn for it is a hash of the key, the purpose and the
position in the sequence: the same bits on every device and in every pass, counting passes included.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moebench.balance.devices import to_device

# The constants of splitmix64 (Steele, Lea and Flood 2014), as signed numbers.
GOLDEN, FIRST, SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685
BITS = 24  # of a number in fp32


def keys(
    seed: int, sequences: int, device: torch.device | None = None
) -> Int[Tensor, " sequences"]:
    """A key for each sequence of a step, from its seed; drawn on the CPU for every device."""
    generator = torch.Generator().manual_seed(seed)
    return to_device(torch.randint(2**62, (sequences,), generator=generator), device)


def uniform(
    key: Int[Tensor, " sequences"], purpose: int, tokens: int, width: int
) -> Float[Tensor, "sequences tokens width"]:
    """Uniform between 0 and 1, both excluded, in fp32.

    Args:
        key: of each sequence.
        purpose: a number; each purpose has draws of its own.
    """
    place = torch.arange(tokens * width, device=key.device).view(tokens, width)
    z = mixed(key + purpose)[:, None, None] + place * GOLDEN
    return ((mixed(z) >> (64 - BITS)) & (2**BITS - 1)).float() * 2.0**-BITS + 2.0 ** -(BITS + 1)


def normal(
    key: Int[Tensor, " sequences"], purpose: int, tokens: int, width: int
) -> Float[Tensor, "sequences tokens width"]:
    """Standard normal, in fp32."""
    return torch.erfinv(2 * uniform(key, purpose, tokens, width) - 1) * 2**0.5


def mixed(z: Tensor) -> Tensor:
    """A hash of each whole number."""
    z = (z ^ _shifted(z, 30)) * FIRST
    z = (z ^ _shifted(z, 27)) * SECOND
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, by: int) -> Tensor:
    """Shift right and fill with zeros; torch's own shift fills with the sign."""
    return (z >> by) & (2 ** (64 - by) - 1)

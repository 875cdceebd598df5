"""How far experts divide the domains among them."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

PERMUTATIONS = 32


def domain_counts(
    counts: Shaped[Tensor, "layers sequences experts"],
    domain: Int[Tensor, " sequences"],
    num_domains: int,
) -> Float[Tensor, "layers domains experts"]:
    """Counts summed over the sequences of each domain, in fp64."""
    member = F.one_hot(domain, num_domains).double()  # [sequences, domains]
    return member.T @ counts.double()


def mutual_information(
    counts: Float[Tensor, "*batch domains experts"],
) -> Float[Tensor, "*batch"]:
    """I(expert; domain) in bits, each domain weighted equally: 0 to log2 of their number."""
    given = counts / counts.sum(-1, keepdim=True)  # p(expert | domain)
    overall = given.mean(-2, keepdim=True)
    ratio = torch.where(given > 0, given / overall, torch.ones_like(given))
    return (given * ratio.log2()).sum(-1).mean(-1)


def domain_specialization(
    counts: Shaped[Tensor, "layers sequences experts"],
    domain: Int[Tensor, " sequences"],
    num_domains: int,
) -> float:
    """Mutual information of expert and domain in bits, mean over layers, less its chance value.

    The chance value is the mean over 32 seeded permutations of the sequences' domain labels, which
    takes away what finite counts alone would show.
    """
    generator = torch.Generator().manual_seed(0)
    domain = domain.cpu()
    found = mutual_information(domain_counts(counts, domain, num_domains)).mean()
    chance = torch.stack(
        [
            mutual_information(
                domain_counts(
                    counts, domain[torch.randperm(len(domain), generator=generator)], num_domains
                )
            ).mean()
            for _ in range(PERMUTATIONS)
        ]
    ).mean()
    return float(found - chance)


def coactivation(
    expert_index: Int[Tensor, "layers sequences tokens slots"], num_experts: int
) -> Int[Tensor, "layers experts experts"]:
    """How many tokens chose each pair of experts together, over all pairs (OLMoE, Eq. 6).

    The diagonal holds each expert's own tokens; rows over it give N_ij / N_i. A slot
    of -1 has no expert in it.
    """
    layers = len(expert_index)
    flat = expert_index.flatten(1, 2)  # [layers, all tokens, slots]
    there = (flat >= 0)[..., :, None] & (flat >= 0)[..., None, :]
    pairs = flat[..., :, None] * num_experts + flat[..., None, :]
    pairs, there = (each.reshape(layers, -1) for each in (pairs.where(there, 0), there))
    found = pairs.new_zeros(layers, num_experts**2)
    found = found.scatter_add(1, pairs, there.to(pairs.dtype))
    return found.view(layers, num_experts, num_experts)

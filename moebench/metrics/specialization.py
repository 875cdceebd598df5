"""How far experts specialise in domains and in the vocabulary."""

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from scipy.sparse import csr_array
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


def purity(counts: Float[Tensor, "*batch domains experts"]) -> Float[Tensor, "*batch"]:
    """How often an expert's commonest domain is that of its token; domains are weighted equally.

    The purity of a clustering: 1 if no expert gets tokens of two domains, 1 / domains if experts
    tell nothing of them. arXiv 2604.07030 has a routing purity, too; its text was not at hand, so
    that its definition may differ.
    """
    given = counts / counts.sum(-1, keepdim=True)  # p(expert | domain)
    return given.amax(-2).sum(-1) / counts.shape[-2]


def domain_specialization(
    counts: Shaped[Tensor, "layers sequences experts"],
    domain: Int[Tensor, " sequences"],
    num_domains: int,
) -> float:
    """Mutual information of expert and domain in bits, mean over layers, less its chance value.

    The chance value is the mean over 32 seeded permutations of the sequences' domain labels. It is
    what finite counts show without any specialisation.
    """
    generator = torch.Generator().manual_seed(0)
    domain = domain.cpu()
    observed = mutual_information(domain_counts(counts, domain, num_domains)).mean()
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
    return float(observed - chance)


def domain_specialization_given_token(
    expert_index: Int[Tensor, "layers sequences tokens top_k"],
    token: Int[Tensor, "sequences tokens"],
    domain: Int[Tensor, " sequences"],
    num_experts: int,
) -> float:
    """I(expert; domain | token) in bits, mean over layers, less its chance value.

    A router that depends only on the token separates domains of different scripts and vocabularies.
    This metric does not count that. Domains are weighted equally. The chance value is the mean over
    32 seeded permutations, for each token separately, of the labels of the sequences that hold it.
    They nearly preserve which tokens meet which domains, and the similarity of a sequence's tokens.
    """
    index = expert_index.cpu().numpy()
    sequences, tokens = token.shape
    whose = np.repeat(np.arange(sequences), tokens)
    pairs = np.stack([token.cpu().numpy().ravel(), whose])
    # a cell is one token in one sequence, wherever it stands there; cells are sorted by token
    cells, cell = np.unique(pairs, axis=1, return_inverse=True)
    label = domain.cpu().numpy()
    per_domain = np.bincount(label).astype(float)
    counts = []
    for layer in index:
        slots = layer.reshape(sequences * tokens, -1)
        place = (cell.reshape(-1, 1) * num_experts + slots)[slots >= 0]  # -1 holds no expert
        tally = np.bincount(place, minlength=cells.shape[1] * num_experts)
        counts.append(tally.reshape(-1, num_experts))
    draw = np.random.default_rng(0)
    of_cell = label[cells[1]]
    observed = _given_token(counts, cells[0], of_cell, per_domain)
    chance = [
        # both orders are by token first, so that labels change places within a token alone
        _given_token(
            counts,
            cells[0],
            of_cell[np.lexsort((draw.random(len(of_cell)), cells[0]))],
            per_domain,
        )
        for _ in range(PERMUTATIONS)
    ]
    return float(observed - np.mean(chance))


def domain_specialization_given_position(
    expert_index: Int[Tensor, "layers sequences tokens top_k"],
    domain: Int[Tensor, " sequences"],
    num_experts: int,
) -> float:
    """I(expert; domain | position) in bits, mean over layers, less its chance value.

    A router that depends on the place in the sequence alone has none. Domains are weighted equally.
    The chance value is the mean over 32 seeded permutations of the sequences' domain labels.
    """
    generator, domain = torch.Generator().manual_seed(0), domain.cpu()
    orders = [torch.randperm(len(domain), generator=generator) for _ in range(PERMUTATIONS)]
    labels = torch.stack([domain, *(domain[order] for order in orders)])
    member = F.one_hot(labels).transpose(1, 2).float()  # [labellings, domains, sequences]
    bits = []
    for layer in expert_index.cpu().long():
        there = (layer >= 0).float()
        experts = torch.zeros(*layer.shape[:2], num_experts)
        experts = experts.scatter_add(2, layer.clamp(min=0), there).flatten(1)
        counts = (member @ experts).double().unflatten(-1, (layer.shape[1], num_experts))
        bits.append(_given_position(counts.transpose(1, 2) / member.sum(-1)[:, None, :, None]))
    observed, *chance = torch.stack(bits).mean(0)
    return float(observed - torch.stack(chance).mean())


def _given_position(
    joint: Float[Tensor, "labellings positions domains experts"],
) -> Float[Tensor, " labellings"]:
    """H(X,D) + H(X,E) - H(X,D,E) - H(X) in bits."""
    joint = joint / joint.sum((1, 2, 3), keepdim=True)

    def entropy(share: Tensor) -> Tensor:
        return torch.special.entr(share).flatten(1).sum(1)

    nats = entropy(joint.sum(3)) + entropy(joint.sum(2)) - entropy(joint)
    return (nats - entropy(joint.sum((2, 3)))) / math.log(2)


def _given_token(
    counts: list[npt.NDArray[np.int64]],
    token: npt.NDArray[np.int64],
    label: npt.NDArray[np.int64],
    per_domain: npt.NDArray[np.float64],
) -> float:
    """H(X,D) + H(X,E) - H(X,D,E) - H(X), mean over layers; counts are [cells, experts]."""
    pair, both = np.unique(token * len(per_domain) + label, return_inverse=True)
    _, one = np.unique(pair // len(per_domain), return_inverse=True)
    cells, weight = np.arange(len(token)), 1 / per_domain[label]
    by_pair = csr_array((weight, (both, cells)), shape=(len(pair), len(token)))
    by_token = csr_array((np.ones(len(pair)), (one, np.arange(len(pair)))))
    bits = []
    for count in counts:
        joint = by_pair @ count.astype(float)  # [tokens x domains, experts]
        joint /= joint.sum()
        marginal = by_token @ joint  # [tokens, experts]
        bits.append(
            _entropy(joint.sum(1))
            + _entropy(marginal)
            - _entropy(joint)
            - _entropy(marginal.sum(1))
        )
    return float(np.mean(bits))


def _entropy(p: npt.NDArray[np.float64]) -> float:
    p = p[p > 0]
    return float(-(p * np.log2(p)).sum())


def domain_frequency(
    counts: Float[Tensor, "*batch domains experts"], top_k: int
) -> Float[Tensor, "*batch domains experts"]:
    """Share of a domain's tokens that each expert gets (OLMoE, Eq. 7): rows sum to top_k."""
    return top_k * counts / counts.sum(-1, keepdim=True)


def vocabulary_specialization(
    expert_index: Int[Tensor, "layers sequences tokens top_k"],
    token: Int[Tensor, "sequences tokens"],
    num_experts: int,
) -> float:
    """How often a token goes to the expert that its vocabulary entry favours, mean over layers.

    This is N_{x,E} / N_x (OLMoE, Eq. 8) for the expert with the largest value. The expert is picked
    on every second sequence, the frequency is taken on the others, and then the halves swap. So
    random routing gives exactly top_k / experts in expectation. Entries that either half lacks are
    left out; nan if none is left.
    """
    index, vocabulary = expert_index.cpu().long(), int(token.max()) + 1
    shares = []
    for layer in index:
        halves, times = [], []
        for half in range(2):
            chosen = layer[half::2].flatten(0, 1)
            entry = token.cpu().long()[half::2].flatten()
            flat = (entry[:, None] * num_experts + chosen)[chosen >= 0]  # -1 holds no expert
            tally = torch.bincount(flat, minlength=vocabulary * num_experts)
            times.append(torch.bincount(entry, minlength=vocabulary))
            halves.append(tally.view(vocabulary, num_experts))
        hits, seen = 0, 0
        for picked, taken, of_entry in (
            (*halves, times[1]),
            (*halves[::-1], times[0]),
        ):
            known = (picked.sum(1) > 0) & (taken.sum(1) > 0)
            favourite = picked[known].argmax(1, keepdim=True)
            hits += int(taken[known].gather(1, favourite).sum())
            seen += int(of_entry[known].sum())
        shares.append(hits / seen if seen else float("nan"))
    return sum(shares) / len(shares)


def largest_partner_share(
    together: Int[Tensor, "layers experts experts"],
) -> float:
    """How often an expert meets the one it meets most: max_j N_ij / N_i, mean over used experts.

    The mean over *all* j is (k - 1) / (E - 1) for every router. The largest distinguishes experts
    that work together from experts that meet by chance; it is 1 if each has a fixed partner.

    Args:
        together: from `coactivation`.
    """
    tokens = together.diagonal(dim1=1, dim2=2).double()
    others = together.double() - torch.diag_embed(tokens)
    used = tokens > 0
    return float((others.amax(-1)[used] / tokens[used]).mean())


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
    pairs, there = (part.reshape(layers, -1) for part in (pairs.where(there, 0), there))
    together = pairs.new_zeros(layers, num_experts**2)
    together = together.scatter_add(1, pairs, there.to(pairs.dtype))
    return together.view(layers, num_experts, num_experts)

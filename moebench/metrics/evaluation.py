"""Router metrics of an evaluation, for any MoE, and the arrays behind them."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from moebench.balance import Routing
from moebench.balance.routing import PADDING
from moebench.metrics import load
from moebench.metrics.specialization import (
    coactivation,
    domain_counts,
    domain_frequency,
    domain_specialization,
    domain_specialization_given_position,
    domain_specialization_given_token,
    largest_partner_share,
    mutual_information,
    purity,
    vocabulary_specialization,
)

PROBE = 8  # sequences whose expert indices are kept
BINS = 20  # of the histogram of router probability, even ones from 0 to 1


def routing_metrics(
    routing: Routing,
    token: Int[Tensor, "sequences tokens"],
    domain: Int[Tensor, " sequences"],
    mixture: Float[Tensor, " domains"],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metrics and arrays of the routing of some domains' sequences.

    Args:
        routing: of these sequences, without padding.
        token: the inputs that were routed.
        domain: of each sequence; every domain has a sequence.
        mixture: weights of the domains in training.

    Returns:
        A row of `load/*` and `specialization/*`, with `load/experts_per_token` where tokens have
        fewer experts than slots; and the arrays `counts` [layers, domains,
        experts], `coactivation` [layers, experts, experts], `probe_index` [layers, sequences,
        tokens, top_k] on some of the sequences, always the same, and `probability` [layers, bins],
        a histogram of the probability of each token's likeliest expert.
    """
    counts, index = routing.counts.cpu(), routing.expert_index.cpu()
    token, domain = token.cpu(), domain.cpu()
    by_domain = domain_counts(counts, domain, len(mixture))
    # domains are weighted as in training, not by their numbers of sequences
    of_each = by_domain / by_domain.sum(-1, keepdim=True)  # [layers, domains, experts]
    mixed = torch.einsum("ldx,d->lx", of_each, (mixture / mixture.sum()).to(of_each.dtype))
    together = coactivation(index, counts.shape[-1])
    row: dict[str, Any] = {
        "load/max_vio_global": load.max_violation(mixed).mean().item(),
        "load/dead_experts_global": load.dead_experts(mixed).mean().item(),
        "load/normalized_entropy": load.normalized_entropy(mixed).mean().item(),
        "load/within_even_share": load.within_even_share(mixed).mean().item(),
        **_specialization(counts, index, token, domain, by_domain),
    }
    if bool((index == PADDING).any()):
        row["load/experts_per_token"] = (index != PADDING).sum(-1).double().mean().item()
    if index.shape[-1] > 1:
        row["specialization/coactivation"] = largest_partner_share(together)
    for layer, used in enumerate(load.utilization(mixed).tolist()):
        row[f"load/utilization/{layer}"] = [round(value, 5) for value in used]
    arrays = {
        "counts": by_domain.long().numpy(),
        "coactivation": together.numpy(),
        **_of_tokens(routing),
    }
    return row, arrays


def _specialization(
    counts: Tensor, index: Tensor, token: Tensor, domain: Tensor, by_domain: Tensor
) -> dict[str, float]:
    """The `specialization/*` of a row.

    Args:
        by_domain: counts [layers, domains, experts]; the others as for `routing_metrics`.
    """
    num_experts, top_k, num_domains = counts.shape[-1], index.shape[-1], by_domain.shape[1]
    largest = domain_frequency(by_domain, top_k).amax(2)  # [layers, domains]
    return {
        "specialization/purity": purity(by_domain).mean().item(),
        "specialization/domain": domain_specialization(counts, domain, num_domains),
        "specialization/domain_uncorrected": mutual_information(by_domain).mean().item(),
        "specialization/domain_given_token": domain_specialization_given_token(
            index, token, domain, num_experts
        ),
        "specialization/domain_given_position": domain_specialization_given_position(
            index, domain, num_experts
        ),
        "specialization/largest_share": largest.amax(1).mean().item(),
        "specialization/largest_over_even": largest.mean().item() * num_experts / top_k,
        "specialization/vocabulary": vocabulary_specialization(index, token, num_experts),
    }


def _of_tokens(routing: Routing) -> dict[str, np.ndarray]:
    """The arrays `probe_index` and, where the router has probabilities, `probability`."""
    index = routing.expert_index.cpu()
    arrays = {"probe_index": index[:, probed(index.shape[1])].short().numpy()}
    if routing.weights is not None:
        arrays["probability"] = _likeliest(routing.weights)
    return arrays


def probed(sequences: int) -> slice:
    """The sequences of a validation set whose experts are kept: PROBE of them, or all of fewer."""
    apart = max(1, sequences // PROBE)
    return slice(0, PROBE * apart, apart)


def _likeliest(weights: Tensor) -> np.ndarray:
    """[layers, bins] how many tokens give their likeliest expert a probability in each bin."""
    likeliest = weights.detach().amax(-1).flatten(1).cpu().double().numpy()
    return np.stack([np.histogram(layer, BINS, (0.0, 1.0))[0] for layer in likeliest])

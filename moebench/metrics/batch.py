"""Router metrics of a training batch, for any MoE, as tensors on its device."""

from jaxtyping import Shaped
from torch import Tensor

from moebench.balance import (
    Global,
    Micro,
    Routing,
    Scope,
    balance_loss,
    of_own_scores,
    z_loss,
)
from moebench.metrics import load


def micro_batch_counts(
    routing: Routing, micro_bsz: int
) -> Shaped[Tensor, "layers micro_batches experts"]:
    """Assignments in each logical micro-batch of `micro_bsz` consecutive sequences."""
    layers, _, experts = routing.counts.shape
    return routing.counts.view(layers, -1, micro_bsz, experts).sum(2)


def batch_metrics(routing: Routing, micro_bsz: int) -> dict[str, Tensor]:
    """Balance and z-losses, `load/*` and `router/*`, as scalars that do not synchronize the device.

    Args:
        routing: of a batch, without padding.
        micro_bsz: sequences in a logical micro-batch; divides the number of the batch.
    """
    tokens, sequences = routing.expert_index.shape[2], routing.counts.shape[1]

    by_scores = of_own_scores(routing)

    def over(scope: Scope) -> Tensor:
        groups = scope.groups(sequences, tokens, device=routing.counts.device)
        return balance_loss(groups.frequency(groups.tally(by_scores)), routing.prob_mass)

    by_micro = micro_batch_counts(routing, micro_bsz)
    in_batch = routing.counts.sum(1)
    metrics = {
        "train/balance_loss_micro": over(Micro(micro_bsz)),
        "train/balance_loss_global": over(Global()),
        "train/z_loss": z_loss(routing),
        "load/max_vio_micro": load.max_violation(by_micro).mean(),
        "load/max_vio_batch": load.max_violation(in_batch).mean(),
        "load/cv": load.coefficient_of_variation(in_batch).mean(),
        "load/entropy": load.load_entropy(in_batch).mean(),
        "load/dead_experts": load.dead_experts(in_batch).mean(),
        "load/gini": load.gini(in_batch).mean(),
        "load/drop_rate": load.drop_rate(by_micro, load.CAPACITY_FACTOR).mean(),
        "load/padding": load.padding(by_micro, load.CAPACITY_FACTOR).mean(),
    }
    if routing.dropped is not None:
        assert routing.reserved is not None
        metrics["load/drop_rate"] = routing.dropped.sum() / routing.counts.sum()
        kept = routing.counts.sum() - routing.dropped.sum()
        metrics["load/padding"] = 1 - kept / routing.reserved.double().sum()
    if routing.moved is not None:
        metrics["router/intervention"] = load.intervention_rate(routing.moved, routing.counts)
    if routing.topk_mass is not None:
        metrics["router/topk_mass"] = routing.topk_mass.mean() / tokens
    return metrics

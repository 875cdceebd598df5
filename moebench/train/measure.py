"""What a step and an evaluation measure, as rows of metrics and arrays of counts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from moebench.balance import (
    Global,
    Micro,
    Routing,
    Scope,
    Steering,
    balance_loss,
    join,
    of_own_scores,
    z_loss,
)
from moebench.config.schema import ExperimentConfig
from moebench.data.batches import validation
from moebench.data.corpus import Corpus, Half
from moebench.data.turns import shares
from moebench.metrics import load
from moebench.metrics.quality import quality
from moebench.metrics.specialization import coactivation, domain_counts, domain_specialization
from moebench.model.noise import keys
from moebench.model.transformer import MoETransformer
from moebench.train.distributed import world_size
from moebench.train.step import Objective, Outcome

PROBE = 8  # validation sequences whose expert indices are kept


def step_metrics(outcome: Outcome, objective: Objective) -> dict[str, float]:
    """The `train/*`, `load/*` and `router/*` metrics of one step's batch."""
    routing = outcome.routing
    tokens = routing.expert_index.shape[2]
    layers, sequences, _ = routing.counts.shape

    if not layers:  # a dense model
        return {"train/loss": outcome.cross_entropy.item()}
    by_scores = of_own_scores(routing)

    def over(scope: Scope) -> Tensor:
        groups = scope.groups(sequences, tokens, device=routing.counts.device)
        return balance_loss(groups.frequency(groups.tally(by_scores)), routing.prob_mass)

    by_micro = routing.counts.view(layers, -1, objective.micro_bsz, routing.counts.shape[-1]).sum(2)
    in_batch = routing.counts.sum(1)
    found = {
        "train/loss": outcome.cross_entropy,
        "train/balance_loss_micro": over(Micro(objective.micro_bsz)),
        "train/balance_loss_global": over(Global()),
        "train/z_loss": z_loss(routing),
        "load/max_vio_micro": load.max_violation(by_micro).mean(),
        "load/max_vio_batch": load.max_violation(in_batch).mean(),
        "load/cv": load.coefficient_of_variation(in_batch).mean(),
        "load/entropy": load.load_entropy(in_batch).mean(),
        "load/dead_experts": load.dead_experts(in_batch).mean(),
    }
    weight = sum(each for each, _ in outcome.balance)
    if weight:
        whole = torch.stack([each * value for each, value in outcome.balance]).sum()
        found["train/balance_loss"] = whole / weight
    for method, state in zip(
        objective.methods, outcome.states[len(objective.terms) :], strict=True
    ):
        found |= {f"method/{name}": value for name, value in method.metrics(state).items()}
    if any(each.penalizes for each in objective.methods):
        found["train/penalty"] = outcome.penalty
    if routing.dropped is not None:
        found["load/drop_rate"] = routing.dropped.sum() / routing.counts.sum()
    if routing.own_index is not None:
        found["router/intervention"] = load.intervention(routing.expert_index, routing.own_index)
    if routing.topk_mass is not None:
        found["router/topk_mass"] = routing.topk_mass.mean() / tokens
    # one transfer for all
    values = torch.stack([value.double() for value in found.values()]).tolist()
    row = dict(zip(found, values, strict=True))
    if any(term.start is not None or term.stop is not None for term in objective.terms):
        row["train/balance_weight"] = weight
    return row


@torch.no_grad()
def evaluate(
    config: ExperimentConfig,
    corpus: Corpus,
    model: MoETransformer,
    device: torch.device,
    steering: Steering | None = None,
    *,
    tune: bool = False,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metrics of the `test` half of the validation set, and what the routers did there.

    Args:
        steering: of the selection of experts, as training left it; frozen here.
        tune: whether to add the quality on the other half.

    Returns:
        A row of `valid/*` (and `heldout/*`, `tune/*`), `load/*` over the validation set and
        `specialization/*`; and arrays: `counts` [layers, domains, experts], `coactivation`
        [layers, experts, experts], `probe_index` [layers, sequences, tokens, top_k] on the same few
        sequences of every run, and `active` [layers, experts] where experts come and go.
    """
    row: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    halves: list[tuple[str, Half, Sequence[str]]] = [("valid", "test", corpus.domains)]
    if corpus.heldout:
        halves.append(("heldout", "test", corpus.heldout))
    if tune:
        halves.append(("tune", "tune", corpus.domains))
    for prefix, half, domains in halves:
        batch = validation(
            corpus,
            half,
            sequences=config.data.valid_sequences,
            seq_len=config.seq_len,
            domains=domains,
        )
        device_bsz = config.run.device_bsz or config.global_bsz // world_size()
        nats, parts = [], []
        if model.gating.random:  # by keys that are the same in every evaluation
            steering = (steering or Steering())._replace(noise=keys(0, len(batch.tokens), device))
        for start in range(0, len(batch.tokens), device_bsz):
            own = slice(start, start + device_bsz)
            tokens = torch.from_numpy(batch.tokens[own]).to(device)
            logits, routing = model(tokens[:, :-1], None if steering is None else steering.of(own))
            nats.append(
                F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none").sum(1)
            )
            parts.append(routing)
        row |= quality(
            prefix,
            torch.cat(nats).double().cpu().numpy(),
            config.seq_len,
            np.array([corpus.tokenizer.bytes_in(each) for each in batch.tokens[:, 1:]]),
            batch.domain,
            domains,
        )
        if prefix == "valid" and parts[0].counts.shape[0]:
            routing = join(parts, along="sequences")
            mixture = torch.tensor(shares(corpus, config.data), dtype=torch.float64)
            load_row, arrays = _routing_metrics(config, routing, batch.domain, mixture)
            row |= load_row
            if steering is not None and steering.mask is not None:
                arrays["active"] = steering.mask.cpu().numpy()
    return row, arrays


def _routing_metrics(
    config: ExperimentConfig, routing: Routing, domain: np.ndarray, mixture: Tensor
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    num_domains = len(mixture)
    counts = routing.counts.cpu()
    labels = torch.from_numpy(domain)
    by_domain = domain_counts(counts, labels, num_domains)
    # every domain has its share of the training mixture, whatever its share of the validation set
    of_each = by_domain / by_domain.sum(-1, keepdim=True)  # [layers, domains, experts]
    mixed = torch.einsum("ldx,d->lx", of_each, (mixture / mixture.sum()).to(of_each.dtype))
    row: dict[str, Any] = {
        "load/max_vio_global": load.max_violation(mixed).mean().item(),
        "specialization/domain": domain_specialization(counts, labels, num_domains),
    }
    for layer, used in enumerate(load.utilization(mixed).tolist()):
        row[f"load/utilization/{layer}"] = [round(each, 5) for each in used]
    probe = routing.expert_index[:, :: max(1, len(domain) // PROBE)][:, :PROBE]
    arrays = {
        "counts": by_domain.long().numpy(),
        "coactivation": coactivation(routing.expert_index, config.model.num_experts).cpu().numpy(),
        "probe_index": probe.short().cpu().numpy(),
    }
    return row, arrays

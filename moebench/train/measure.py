"""What a step and an evaluation measure, as rows of metrics and arrays of counts."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from moebench.balance import Steering, join
from moebench.config.schema import ExperimentConfig
from moebench.data.batches import Batch, validation, validation_documents
from moebench.data.corpus import Corpus, Half
from moebench.data.turns import shares
from moebench.metrics import expert_parallel, load
from moebench.metrics.batch import batch_metrics, micro_batch_counts
from moebench.metrics.evaluation import routing_metrics
from moebench.metrics.quality import Documents, quality, standard_errors
from moebench.model.noise import keys
from moebench.model.transformer import MoETransformer
from moebench.train.ranks import world_size
from moebench.train.step import Objective, Outcome

RECENT = 0.9  # decay a step of the loads that experts are placed by


def recent_load(before: Tensor | None, outcome: Outcome) -> Tensor:
    """[layers, experts] loads of the steps so far, the latest weighing most."""
    counts = outcome.routing.counts.sum(1).float()
    return counts if before is None else RECENT * before + counts


def fetched(values: Tensor) -> Callable[[], Tensor]:
    """Send values to the host now, without waiting; calling what is returned waits for them."""
    if not values.is_cuda:
        return lambda: values
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()

    def read() -> Tensor:
        arrived.synchronize()
        return host

    return read


def step_metrics(
    outcome: Outcome,
    objective: Objective,
    *,
    before: Tensor | None = None,
    assignment_bytes: int = 0,
) -> Callable[[], dict[str, Any]]:
    """The `train/*`, `load/*`, `router/*` and `ep/*` metrics of one step's batch.

    Args:
        before: [layers, experts] recent loads of earlier steps, by which experts are placed.
        assignment_bytes: what sending one assignment to its expert and back takes in a step.

    Returns:
        What gives the row. Until it is called, nothing waits for the device.
    """
    routing, micro_bsz = outcome.routing, objective.micro_bsz
    if not len(routing.counts):  # a dense model
        nats = fetched(outcome.cross_entropy)
        return lambda: {"train/loss": nats().item()}
    found = {"train/loss": outcome.cross_entropy, **batch_metrics(routing, micro_bsz)}
    weight = sum(each for each, _ in outcome.balance)
    if weight:
        whole = torch.stack([each * value for each, value in outcome.balance]).sum()
        found["train/balance_loss"] = whole / weight
    pairs = zip(objective.methods, outcome.states[len(objective.terms) :], strict=True)
    for method, state in pairs:
        found |= {f"method/{name}": value for name, value in method.metrics(state).items()}
    if any(each.penalizes for each in objective.methods):
        found["train/penalty"] = outcome.penalty
    by_micro = micro_batch_counts(routing, micro_bsz)
    shape = by_micro.shape
    layers, _, experts = shape
    placing = by_micro.new_zeros(layers, experts) if before is None else before
    # one transfer for all; counts are exact in fp64
    parts = [torch.stack([value.double() for value in found.values()])]
    parts += [by_micro.double().flatten(), placing.double().flatten()]
    sent = fetched(torch.cat(parts))

    def row() -> dict[str, Any]:
        values, micro, placing = sent().split([len(each) for each in parts])
        row: dict[str, Any] = dict(zip(found, values.tolist(), strict=True))
        micro = micro.view(shape)
        row["load/layers/max_vio_micro"] = _rounded(load.max_violation(micro).mean(1))
        row["load/layers/max_vio_batch"] = _rounded(load.max_violation(micro.sum(1)))
        row |= expert_parallel.cost(
            micro.numpy(), placing.view(layers, experts).numpy(), assignment_bytes
        )
        if any(term.start is not None or term.stop is not None for term in objective.terms):
            row["train/balance_weight"] = weight
        return row

    return row


def _rounded(values: Tensor) -> list[float]:
    return [round(each, 5) for each in values.tolist()]


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
        A row of `valid/*` (and `heldout/*`, `tune/*`), `assigned/nats` of a method that assigns
        experts, and the row and the arrays of `routing_metrics`, with the same probe in every run,
        and `active` [layers, experts] where experts come and go; no arrays of a dense model.
    """
    row: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    halves: list[tuple[str, Half, Sequence[str]]] = [("valid", "test", corpus.domains)]
    if corpus.heldout:
        halves.append(("heldout", "test", corpus.heldout))
    if tune:
        halves.append(("tune", "tune", corpus.domains))
    for prefix, half, domains in halves:
        size: dict[str, Any] = {
            "sequences": config.data.valid_sequences,
            "seq_len": config.seq_len,
            "domains": domains,
        }
        batch = validation(corpus, half, **size)
        device_bsz = config.run.device_bsz or config.global_bsz // world_size()
        nats, parts = [], []
        if model.gating.random:  # by keys that are the same in every evaluation
            steering = (steering or Steering())._replace(noise=keys(0, len(batch.tokens), device))
        for start in range(0, len(batch.tokens), device_bsz):
            own = slice(start, start + device_bsz)
            tokens = torch.from_numpy(batch.tokens[own]).to(device)
            logits, routing = model(tokens[:, :-1], None if steering is None else steering.of(own))
            nats.append(F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none"))
            parts.append(routing)
        row |= quality(
            prefix,
            torch.cat([each.sum(1) for each in nats]).double().cpu().numpy(),
            config.seq_len,
            np.array([corpus.tokenizer.bytes_in(each) for each in batch.tokens[:, 1:]]),
            batch.domain,
            domains,
        )
        document = validation_documents(corpus, half, **size)
        found = by_document(torch.cat(nats).double().cpu().numpy(), batch, document, corpus)
        row |= standard_errors(prefix, found, domains)
        if prefix == "valid" and model.gating.method is not None:
            row["assigned/nats"] = _assigned_nats(model, batch, device_bsz, device, steering)
        if prefix == "valid" and model.router_weights:
            judged, arrays = routing_metrics(
                join(parts, along="sequences"),
                torch.from_numpy(batch.tokens[:, :-1]),
                torch.from_numpy(batch.domain),
                torch.tensor(shares(corpus, config.data), dtype=torch.float64),
            )
            row |= judged
            if steering is not None and steering.mask is not None:
                arrays["active"] = steering.mask.cpu().numpy()
    return row, arrays


def _assigned_nats(
    model: MoETransformer,
    batch: Batch,
    device_bsz: int,
    device: torch.device,
    steering: Steering | None,
) -> float:
    """Nats a token where the method assigns experts as in training, over whole logical groups.

    Apart from `valid/nats`, with which it is not to be compared: an assignment may depend on later
    tokens, as Expert Choice's does.
    """
    group = model.gating.group_bsz
    size = max(group, device_bsz // group * group)
    whole = len(batch.tokens) // group * group
    total, tokens = 0.0, 0
    for start in range(0, whole, size):
        own = slice(start, min(start + size, whole))
        part = torch.from_numpy(batch.tokens[own]).to(device)
        steered = None if steering is None else steering.of(own)
        logits, _ = model(part[:, :-1], steered, training=True)
        targets = part[:, 1:]
        nats = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        total, tokens = total + float(nats.double().sum()), tokens + targets.numel()
    return total / tokens if tokens else math.nan


def by_document(nats: np.ndarray, batch: Batch, document: np.ndarray, corpus: Corpus) -> Documents:
    """Sums over the target tokens of each document that a validation set has a part of.

    Args:
        nats: [sequences, tokens] cross-entropy of each target token.
        document: [sequences, tokens] the number of its document.
    """
    targets = batch.tokens[:, 1:].ravel()
    _, number = np.unique(document.ravel(), return_inverse=True)
    order = number.argsort(kind="stable")
    ends = np.bincount(number).cumsum()[:-1]
    domain = np.repeat(batch.domain, document.shape[1])
    first = np.concatenate([[0], ends])
    return Documents(
        nats=np.bincount(number, nats.ravel()),
        tokens=np.bincount(number),
        text_bytes=np.array(
            [corpus.tokenizer.bytes_in(each) for each in np.split(targets[order], ends)]
        ),
        domain=domain[order][first],
    )

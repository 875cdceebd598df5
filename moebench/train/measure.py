"""The metrics of a step and of an evaluation: rows of numbers and arrays of counts."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from moebench.balance import Routing, Steering, join
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
from moebench.train.feed import with_domain
from moebench.train.prescribed import Place, Prescription, Replay
from moebench.train.replay_cost import replay_cost
from moebench.train.step import Objective, Outcome, method_states

RECENT = 0.9  # decay, a step, of the loads by which experts are placed on ranks


def recent_load(before: Tensor | None, outcome: Outcome) -> Tensor:
    """[layers, experts] decayed sum of the loads of all steps so far."""
    counts = outcome.routing.counts.sum(1, dtype=torch.float32)
    return counts if before is None else RECENT * before + counts


def fetched(values: Tensor) -> Callable[[], Tensor]:
    """Start to copy values to the host; the function returned waits for them and returns them."""
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
        assignment_bytes: sent in a step for one assignment, to its expert and back.

    Returns:
        A function that returns the row. Nothing waits for the device before it is called.
    """
    routing, micro_bsz = outcome.routing, objective.micro_bsz
    if not len(routing.counts):  # a dense model
        nats = fetched(outcome.cross_entropy)
        return lambda: {"train/loss": nats().item()}
    scalars = {"train/loss": outcome.cross_entropy, **batch_metrics(routing, micro_bsz)}
    weight = sum(term_weight for term_weight, _ in outcome.balance)
    if weight:
        total = torch.stack([term_weight * value for term_weight, value in outcome.balance]).sum()
        scalars["train/balance_loss"] = total / weight
    for method, state in method_states(objective, outcome.states):
        scalars |= {f"method/{name}": value for name, value in method.metrics(state).items()}
    if outcome.penalty is not None:
        scalars["train/penalty"] = outcome.penalty
    by_micro = micro_batch_counts(routing, micro_bsz)
    shape = by_micro.shape
    layers, _, experts = shape
    placing = by_micro.new_zeros(layers, experts) if before is None else before
    # one transfer for all; counts are exact in fp64
    parts = [torch.stack([value.double() for value in scalars.values()])]
    parts += [by_micro.double().flatten(), placing.double().flatten()]
    arrived = fetched(torch.cat(parts))

    def row() -> dict[str, Any]:
        values, micro, placing = arrived().split([len(part) for part in parts])
        row: dict[str, Any] = dict(zip(scalars, values.tolist(), strict=True))
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
    return [round(value, 5) for value in values.tolist()]


class Evaluation(NamedTuple):
    """What an evaluation measures.

    Attributes:
        row: `valid/*` (and `heldout/*`, `tune/*`), `assigned/nats` of a method that assigns
            experts, `own/nats` of a run that replays another, and the row of `routing_metrics`.
        arrays: of `routing_metrics`, with the same probe in every run, and `active` [layers,
            experts] where experts come and go; none of a dense model.
        selections: `valid` and so on: [layers, sequences, tokens, slots] the experts of all tokens.
    """

    row: dict[str, Any]
    arrays: dict[str, np.ndarray]
    selections: dict[str, Tensor]


@torch.no_grad()
def evaluate(
    config: ExperimentConfig,
    corpus: Corpus,
    model: MoETransformer,
    device: torch.device,
    steering: Steering | None = None,
    prescription: Prescription | Replay | None = None,
    *,
    device_bsz: int,
    step: int,
) -> Evaluation:
    """Evaluate a model on the `test` half of the validation set.

    The last evaluation also measures the quality on the other half, and `router/replay_cost`, which
    takes two forward passes more.

    Args:
        steering: of the selection of experts, as training left it; it does not change here.
        prescription: of a prescribed router.
        device_bsz: sequences in a forward pass.
        step: after which the evaluation is.
    """
    row: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    selections: dict[str, Tensor] = {}
    last = step == config.train.steps
    for prefix, half, domains in _halves(corpus, tune=last):
        sizes = {"sequences": config.data.valid_sequences, "seq_len": config.seq_len}
        size: dict[str, Any] = {**sizes, "domains": domains}
        batch = validation(corpus, half, **size)
        text = Text.of(batch, config, corpus, device, prescription, Place(prefix, step))
        unforced = _steered(model, text._replace(forced=None), steering)
        steering = _steered(model, text, steering)
        nats, routing = _forward_all(model, text, device_bsz, steering)
        selections[prefix] = routing.expert_index
        document = validation_documents(corpus, half, **size)
        row |= _quality(prefix, nats, batch, document, corpus, domains)
        if prefix != "valid":
            continue
        if model.gating.method is not None:
            row["assigned/nats"] = _assigned_nats(model, text, device_bsz, steering)
        if isinstance(prescription, Replay):
            own, _ = _forward_all(model, text, device_bsz, unforced)
            row["own/nats"] = float(torch.cat(own).double().mean())  # domains have equal parts
        if model.router_weights:
            domain = torch.from_numpy(batch.domain)
            mixture = torch.tensor(shares(corpus, config.data), dtype=torch.float64)
            of_routing, arrays = routing_metrics(routing, text.tokens[:, :-1], domain, mixture)
            row |= of_routing
            if last:
                row |= _replayed(model, text, batch.domain, routing, device_bsz, steering)
            if steering is not None and steering.mask is not None:
                arrays["active"] = steering.mask.cpu().numpy()
    return Evaluation(row, arrays, selections)


def _quality(
    prefix: str,
    nats: Sequence[Tensor],
    batch: Batch,
    document: np.ndarray,
    corpus: Corpus,
    domains: Sequence[str],
) -> dict[str, Any]:
    """The quality of a validation set, with its standard errors over documents.

    Args:
        nats: [sequences, targets] of each pass.
        document: [sequences, targets] the number of each target's document.
    """
    row = quality(
        prefix,
        torch.cat([part.sum(1) for part in nats]).double().cpu().numpy(),
        document.shape[1],
        np.array([corpus.tokenizer.bytes_in(tokens) for tokens in batch.tokens[:, 1:]]),
        batch.domain,
        domains,
    )
    documents = by_document(torch.cat(list(nats)).double().cpu().numpy(), batch, document, corpus)
    return row | standard_errors(prefix, documents, domains)


def _steered(model: MoETransformer, text: "Text", steering: Steering | None) -> Steering | None:
    """What steers the evaluation of a text, with the same random keys in every evaluation."""
    if model.gating.random:
        noise = keys(0, len(text.tokens), text.tokens.device)
        steering = (steering or Steering())._replace(noise=noise)
    if text.forced is not None:
        steering = (steering or Steering())._replace(forced=text.forced)
    return steering


def _halves(corpus: Corpus, *, tune: bool) -> Iterator[tuple[str, Half, Sequence[str]]]:
    """What an evaluation measures: prefix of the metrics, half of the documents, and domains."""
    yield "valid", "test", corpus.domains
    if corpus.heldout:
        yield "heldout", "test", corpus.heldout
    if tune:
        yield "tune", "tune", corpus.domains


class Text(NamedTuple):
    """Validation sequences on the device of the model.

    Attributes:
        tokens: [sequences, tokens + 1]; the first may name the domain.
        uncounted: first inputs of each sequence whose next token is no target.
        forced: the experts of a prescribed router, as `Steering.forced`.
    """

    tokens: Tensor
    uncounted: int
    forced: Tensor | None

    @classmethod
    def of(
        cls,
        batch: Batch,
        config: ExperimentConfig,
        corpus: Corpus,
        device: torch.device,
        prescription: Prescription | Replay | None,
        place: Place,
    ) -> "Text":
        tokens, domain = (torch.from_numpy(each).to(device) for each in batch)
        if named := config.data.domain_token:
            tokens = with_domain(tokens, domain, corpus.vocab_size)
        forced = prescription and prescription(tokens[:, :-1], domain, place)
        return cls(tokens, int(named), forced)

    def nats(self, logits: Tensor, span: slice) -> Tensor:
        """[sequences, targets] the cross-entropy of each target token."""
        targets = self.tokens[span, 1 + self.uncounted :]
        logits = logits[:, self.uncounted :].transpose(1, 2)
        return F.cross_entropy(logits, targets, reduction="none")


def _forward_all(
    model: MoETransformer, text: Text, device_bsz: int, steering: Steering | None
) -> tuple[list[Tensor], Routing]:
    """The nats [sequences, targets] of each pass over a text, and the routing of all of it."""
    nats, routings = [], []
    for start in range(0, len(text.tokens), device_bsz):
        span = slice(start, start + device_bsz)
        inputs = text.tokens[span, :-1], None if steering is None else steering.of(span)
        logits, routing = model(*inputs)
        nats.append(text.nats(logits, span))
        routings.append(routing)
    return nats, join(routings, along="sequences")


def _replayed(
    model: MoETransformer,
    text: Text,
    domain: np.ndarray,
    routing: Routing,
    device_bsz: int,
    steering: Steering | None,
) -> dict[str, float]:
    def forward(forced: Tensor) -> Tensor:
        with_forced = (steering or Steering())._replace(forced=forced)
        return torch.cat(_forward_all(model, text, device_bsz, with_forced)[0])

    inputs = text.tokens[:, :-1]
    cost = replay_cost(routing.expert_index, inputs, torch.from_numpy(domain), forward)
    return {} if cost is None else {"router/replay_cost": cost}


def _assigned_nats(
    model: MoETransformer, text: Text, device_bsz: int, steering: Steering | None
) -> float:
    """Nats a token where the method assigns experts as in training, over whole logical groups.

    It is kept apart from `valid/nats`, and not comparable with it: an assignment may depend on
    later tokens, as Expert Choice's does.
    """
    group = model.gating.group_bsz
    size = max(group, device_bsz // group * group)
    whole = len(text.tokens) // group * group
    total, count = 0.0, 0
    for start in range(0, whole, size):
        span = slice(start, min(start + size, whole))
        inputs = text.tokens[span, :-1], None if steering is None else steering.of(span)
        logits, _ = model(*inputs, training=True)
        nats = text.nats(logits, span)
        total, count = total + float(nats.double().sum()), count + nats.numel()
    return total / count if count else math.nan


def by_document(nats: np.ndarray, batch: Batch, document: np.ndarray, corpus: Corpus) -> Documents:
    """Sums over the target tokens of each document, or part of one, in a validation set.

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
            [corpus.tokenizer.bytes_in(tokens) for tokens in np.split(targets[order], ends)]
        ),
        domain=domain[order][first],
    )

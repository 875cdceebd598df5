"""The routers of a Hugging Face MoE checkpoint on disk, on a folder of text by domain.

Any causal MoE of the transformers library works (Qwen3-MoE, Mixtral, OLMoE, ...) whose experts are
told which tokens they get. The routing is the one that the model itself used (`hooks.watch`). The
metrics are those of moebench's own models. They include the two balance losses that the paper
compares: over micro-batches of one domain, and over all text.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from moebench.balance import Routing, join
from moebench.catalogue import random_values
from moebench.config.schema import DataConfig
from moebench.data.corpus import Corpus, prepare
from moebench.data.tokenizer import refusing
from moebench.errors import ConfigError, DataError
from moebench.hooks.watch import RoutingUnknownError, Watch
from moebench.inspect import Inspection
from moebench.inspect.hf_loading import Checkpoint, first_line
from moebench.metrics.batch import batch_metrics
from moebench.metrics.evaluation import routing_metrics
from moebench.metrics.load import random_load
from moebench.metrics.quality import quality

BATCH_TOKENS = 4096
BYTES_PER_TOKEN = 8  # of text to read, more than most texts need
NO_GATE = (
    "its weights fit no known gate (softmax, sigmoid, sqrt_softplus): its routers' probabilities "
    "are not known, nor the losses made of them"
)
REMEDY = "name an MoE whose experts are called with indices, such as qwen3_moe"
SKIPPED = "of the assignments have weight 0 (the model skips an expert) and count nowhere"


def inspect_checkpoint(
    checkpoint: Checkpoint, data: Path, *, sequences: int, seq_len: int, micro_bsz: int
) -> Inspection:
    """Measure the routers of a checkpoint on a folder of text.

    Args:
        checkpoint: its weights are loaded here.
        data: a folder as `data=folder` reads it; the test half of its validation text is used.
        sequences: per domain; a multiple of `micro_bsz`.
        seq_len: in tokens of the checkpoint's tokenizer.
        micro_bsz: sequences in a logical micro-batch, all of one domain.

    Raises:
        ConfigError: if the checkpoint cannot be used.
        DataError: if the folder cannot be read, or has too little text.
    """
    try:
        corpus = prepare(DataConfig(source="folder", path=str(data)))
    except DataError as error:
        raise DataError(str(error).replace("data.path=", "--data=", 1)) from None
    made = [_tokens(corpus, name, checkpoint, sequences, seq_len) for name in corpus.domains]
    model, family = checkpoint.model(), checkpoint.family
    tokens = torch.from_numpy(np.concatenate([tokens for tokens, _ in made]))
    text_bytes = np.concatenate([size for _, size in made])
    domain = torch.arange(len(made)).repeat_interleave(sequences)
    batches = tokens.split(max(1, BATCH_TOKENS // seq_len))
    routed = [route(model, batch, f"--hf={checkpoint.directory}: {family}") for batch in batches]
    nats, parts, layers = zip(*routed, strict=True)
    routing, notes = without_unknown(join(parts, along="sequences"))
    row, arrays = routing_metrics(
        routing, tokens[:, :-1], domain, torch.ones(len(made), dtype=torch.float64)
    )
    measured = {key: float(value) for key, value in batch_metrics(routing, micro_bsz).items()}
    batch = {key: value for key, value in measured.items() if not math.isnan(value)}
    text_quality = quality(
        "valid", torch.cat(nats).numpy(), seq_len, text_bytes, domain.numpy(), corpus.domains
    )
    top_k, experts = routing.expert_index.shape[-1], routing.counts.shape[-1]
    return Inspection(
        name=str(checkpoint.directory),
        about=[
            f"{family}: {len(routing.counts)} MoE layers, {experts} experts, "
            f"top-{top_k}; {sequences} sequences of {seq_len} tokens of each domain ({len(made)})",
            f"a micro-batch is {micro_bsz} sequences of one domain, a step is all of them",
            *notes,
        ],
        layers=layers[0],
        domains=list(corpus.domains),
        counts=arrays["counts"],
        top_k=top_k,
        metrics={**text_quality, **batch, **row},
        random=_random(experts, top_k, micro_bsz * seq_len, len(tokens) * seq_len),
    )


def _random(experts: int, top_k: int, micro_tokens: int, tokens: int) -> dict[str, float]:
    """Metric -> its value under random routing. All text is both a step and a validation set."""
    micro, whole = (random_load(experts, top_k, size) for size in (micro_tokens, tokens))
    loads = {"micro": micro, "batch": whole, "global": whole}
    return random_values({"random_load": loads}, experts, top_k)


def _tokens(
    corpus: Corpus, domain: str, checkpoint: Checkpoint, sequences: int, seq_len: int
) -> tuple[np.ndarray, np.ndarray]:
    """[sequences, seq_len + 1] tokens of a domain, and [sequences] bytes of their targets."""
    wanted, where = sequences * (seq_len + 1), f"--hf={checkpoint.directory}"
    text = corpus.tokenizer.decode(corpus.valid(domain, "test")[: wanted * BYTES_PER_TOKEN])
    with refusing(f"{where}: its tokenizer cannot encode the text"):
        made = checkpoint.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
    ids, ends = made["input_ids"], made["offset_mapping"]
    if len({*ids}) < 2 < len({*text}):
        raise ConfigError(
            f"{where}: its tokenizer knows no token of the text; copy the tokenizer's files from "
            "where the checkpoint comes from"
        )
    known = checkpoint.vocab_size
    if known is not None and max(ids) >= known:
        raise ConfigError(
            f"{where}: the tokenizer makes token {max(ids)}, and config.json has vocab_size="
            f"{known}; copy the tokenizer that the model was trained with"
        )
    if len(ids) < wanted:
        room = len(ids) // (seq_len + 1)
        remedy = f"lower --sequences to {room}" if room else "lower --seq-len"
        raise DataError(
            f"--data: domain {domain!r} has text for {room} sequences of {seq_len + 1} tokens in "
            f"its test half; {remedy}, or add validation text"
        )
    tokens = np.array(ids[:wanted], np.int64).reshape(sequences, seq_len + 1)
    # the bytes of a character belong to the token that ends it
    size = np.concatenate([[0], np.cumsum([len(letter.encode()) for letter in text])])
    until = size[[end for _, end in ends[:wanted]]].reshape(sequences, seq_len + 1)
    return tokens, until[:, -1] - until[:, 0]


@torch.no_grad()
def route(model: Any, tokens: Tensor, name: str) -> tuple[Tensor, Routing, list[str]]:
    """[sequences] nats of the targets, the routing, and its layers' names; on the CPU.

    Args:
        tokens: [sequences, seq_len + 1].
        name: of the checkpoint, for errors.

    Raises:
        ConfigError: if the routing cannot be had, or is not finite.
    """
    inputs, targets = tokens[:, :-1].to(model.device), tokens[:, 1:].to(model.device)
    try:
        with Watch(model, inputs.numel()) as watch:
            logits = model(input_ids=inputs, use_cache=False).logits
    except RoutingUnknownError as error:
        raise ConfigError(f"{name}: has no routing to show ({error}); {REMEDY}") from None
    except Exception as error:  # a model that needs more than text, for example
        raise ConfigError(
            f"{name}: cannot read text alone ({first_line(error)}); name a causal MoE, or restore "
            "its config.json"
        ) from None
    layers, missed = watch.layers, watch.missed()
    if logits.shape[:2] != inputs.shape:
        raise ConfigError(f"{name}: does not predict the next of each token; name a causal MoE")
    if not layers and not missed:
        raise ConfigError(f"{name}: is a dense model, without routers; name an MoE")
    if missed:
        raise ConfigError(f"{name}: {missed[0]} is not told which tokens it gets; {REMEDY}")
    if not all(layer.weights.isfinite().all() for layer in layers) or not logits.isfinite().all():
        raise ConfigError(f"{name}: computes NaN or infinity on this text; load a sound checkpoint")
    sizes = {(layer.experts, layer.index.shape[-1]) for layer in layers}
    if len(sizes) > 1:
        raise ConfigError(f"{name}: its layers differ in (experts, top-k), {sizes}; {REMEDY}")
    nats = F.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")
    routing = join([layer.routing(len(inputs)) for layer in layers], along="layers")
    return nats.double().sum(1).cpu(), routing, [layer.name for layer in layers]


def without_unknown(routing: Routing) -> tuple[Routing, list[str]]:
    """The routing without what is not known of it, and lines that say what is particular."""
    notes, skipped = [], (routing.expert_index < 0).float().mean().item()
    if skipped:
        notes.append(f"{skipped:.2%} {SKIPPED}")
    if routing.prob_mass.isnan().any():
        notes.append(NO_GATE)
        routing = routing._replace(weights=None, topk_mass=None)
    return routing, notes

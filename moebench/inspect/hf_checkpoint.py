"""The routers of a Hugging Face MoE checkpoint on disk, on a folder of text by domain.

Any causal model that returns `router_logits` works (Qwen3-MoE, Mixtral, OLMoE, ...). The metrics
are those of moebench's own models. They include the two balance losses that the paper compares:
over micro-batches of one domain, and over all text.
"""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from moebench.balance import Routing, join, observe
from moebench.catalogue import random_values
from moebench.config.schema import DataConfig
from moebench.data.corpus import Corpus, prepare
from moebench.errors import ConfigError, DataError
from moebench.inspect import Inspection
from moebench.metrics.batch import batch_metrics
from moebench.metrics.evaluation import routing_metrics
from moebench.metrics.load import random_load
from moebench.metrics.quality import quality

BATCH_TOKENS = 4096
BYTES_PER_TOKEN = 8  # of text to read, more than most texts need


def inspect_checkpoint(
    directory: Path, data: Path, *, sequences: int, seq_len: int, micro_bsz: int
) -> Inspection:
    """Measure the routers of a checkpoint on a folder of text.

    Args:
        directory: with config.json, weights and a tokenizer. Nothing is downloaded.
        data: a folder as `data=folder` reads it; the test half of its validation text is used.
        sequences: per domain.
        seq_len: in tokens of the checkpoint's tokenizer.
        micro_bsz: sequences in a logical micro-batch, all of one domain.

    Raises:
        ConfigError: if the sizes do not fit, or the checkpoint cannot be used.
        DataError: if the folder cannot be read, or has too little text.
    """
    if sequences % micro_bsz:
        raise ConfigError(f"--micro-bsz={micro_bsz}: must divide --sequences={sequences}")
    library = _transformers()
    if not (directory / "config.json").is_file():
        raise ConfigError(f"--hf={directory}: has no config.json; name the folder of a checkpoint")
    try:
        corpus = prepare(DataConfig(source="folder", path=str(data)))
    except DataError as error:
        raise DataError(str(error).replace("data.path=", "--data=", 1)) from None
    model, tokenizer = _load(directory, library)
    made = [_tokens(corpus, name, tokenizer, sequences, seq_len) for name in corpus.domains]
    tokens = torch.from_numpy(np.concatenate([tokens for tokens, _ in made]))
    text_bytes = np.concatenate([size for _, size in made])
    domain = torch.arange(len(made)).repeat_interleave(sequences)
    batches = tokens.split(max(1, BATCH_TOKENS // seq_len))
    nats, parts = zip(*(_route(model, batch, directory) for batch in batches), strict=True)
    routing = join(parts, along="sequences")
    row, arrays = routing_metrics(
        routing, tokens[:, :-1], domain, torch.ones(len(made), dtype=torch.float64)
    )
    batch = {key: float(value) for key, value in batch_metrics(routing, micro_bsz).items()}
    text_quality = quality(
        "valid", torch.cat(nats).numpy(), seq_len, text_bytes, domain.numpy(), corpus.domains
    )
    top_k, experts = routing.expert_index.shape[-1], routing.counts.shape[-1]
    return Inspection(
        name=str(directory),
        about=[
            f"{model.config.model_type}: {len(routing.counts)} MoE layers, {experts} experts, "
            f"top-{top_k}; {sequences} sequences of {seq_len} tokens of each domain ({len(made)})",
            f"a micro-batch is {micro_bsz} sequences of one domain, a step is all of them",
        ],
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


def _transformers() -> Any:
    try:
        # by name, because a type checker needs half a minute for its package of all models
        return importlib.import_module("transformers")
    except ImportError:
        raise ConfigError(
            "--hf: needs the transformers library; run pip install 'moebench[huggingface]'"
        ) from None


def _load(directory: Path, library: Any) -> tuple[Any, Any]:
    """The model and the tokenizer in a folder."""
    local = {"local_files_only": True}
    try:
        model = library.AutoModelForCausalLM.from_pretrained(directory, **local)
        tokenizer = library.AutoTokenizer.from_pretrained(directory, **local)
    except Exception as error:  # the library raises errors of many types
        raise ConfigError(
            f"--hf={directory}: cannot be loaded ({str(error).splitlines()[0]})"
        ) from None
    if not tokenizer.is_fast:
        raise ConfigError(
            f"--hf={directory}: has a slow tokenizer, which gives no offsets; save a fast tokenizer"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval(), tokenizer


def _tokens(
    corpus: Corpus, domain: str, tokenizer: Any, sequences: int, seq_len: int
) -> tuple[np.ndarray, np.ndarray]:
    """[sequences, seq_len + 1] tokens of a domain, and [sequences] bytes of their targets."""
    wanted = sequences * (seq_len + 1)
    text = corpus.tokenizer.decode(corpus.valid(domain, "test")[: wanted * BYTES_PER_TOKEN])
    made = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, ends = made["input_ids"], made["offset_mapping"]
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
def _route(model: Any, tokens: Tensor, directory: Path) -> tuple[Tensor, Routing]:
    """[sequences] nats of the targets, and the routing, on the CPU."""
    inputs = tokens[:, :-1].to(model.device)
    try:
        out = model(inputs, output_router_logits=True, use_cache=False)
    except TypeError:  # a dense model knows no such argument
        out = None
    layers = getattr(out, "router_logits", None)
    if out is None or not layers:
        raise ConfigError(f"--hf={directory}: the model returns no router_logits; name an MoE")
    top_k = getattr(model.config, "num_experts_per_tok", None)
    if not isinstance(top_k, int):
        raise ConfigError(
            f"--hf={directory}: its config has no num_experts_per_tok; name an MoE with top-k"
        )
    targets = tokens[:, 1:].to(model.device)
    nats = (
        F.cross_entropy(out.logits.float().transpose(1, 2), targets, reduction="none")
        .double()
        .sum(1)
        .cpu()
    )
    sequences, length = inputs.shape
    routing = [
        observe(logits.reshape(sequences, length, -1).cpu(), top_k=top_k) for logits in layers
    ]
    return nats, join(routing, along="layers")

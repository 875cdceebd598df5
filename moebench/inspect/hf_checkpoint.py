"""The routers of a Hugging Face MoE checkpoint on disk, on a folder of text by domain.

Any causal model that gives `router_logits` will do (Qwen3-MoE, Mixtral, OLMoE, ...). What is
measured is what moebench measures of its own models, and the balance loss over micro-batches of one
domain beside that over all: the two that the paper compares.
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
BYTES_A_TOKEN = 8  # of text that is read, more than a token of most texts takes


def inspect_checkpoint(
    directory: Path, data: Path, *, sequences: int, seq_len: int, micro_bsz: int
) -> Inspection:
    """Look at the routers of a checkpoint.

    Args:
        directory: with config.json, weights and a tokenizer; nothing is fetched.
        data: a folder as `data=folder` reads it; the test half of its validation text is used.
        sequences: of each domain.
        seq_len: in tokens of the checkpoint's tokenizer.
        micro_bsz: sequences in a logical micro-batch, all of one domain.

    Raises:
        ConfigError, DataError: in a line, what is missing or does not fit.
    """
    if sequences % micro_bsz:
        raise ConfigError(f"--micro-bsz={micro_bsz}: must divide --sequences={sequences}")
    library = _transformers()
    if not (directory / "config.json").is_file():
        raise ConfigError(f"--hf={directory}: has no config.json; name a checkpoint's folder")
    try:
        corpus = prepare(DataConfig(source="folder", path=str(data)))
    except DataError as error:
        raise DataError(str(error).replace("data.path=", "--data=", 1)) from None
    model, tokenizer = _load(directory, library)
    made = [_tokens(corpus, name, tokenizer, sequences, seq_len) for name in corpus.domains]
    tokens = torch.from_numpy(np.concatenate([each for each, _ in made]))
    text_bytes = np.concatenate([each for _, each in made])
    domain = torch.arange(len(made)).repeat_interleave(sequences)
    nats, parts = [], []
    for batch in tokens.split(max(1, BATCH_TOKENS // seq_len)):
        lost, routing = _route(model, batch, directory)
        nats.append(lost)
        parts.append(routing)
    routing = join(parts, along="sequences")
    row, arrays = routing_metrics(
        routing, tokens[:, :-1], domain, torch.ones(len(made), dtype=torch.float64)
    )
    batch = {key: float(value) for key, value in batch_metrics(routing, micro_bsz).items()}
    top_k, experts = routing.expert_index.shape[-1], routing.counts.shape[-1]
    micro, whole = (
        random_load(experts, top_k, size * seq_len) for size in (micro_bsz, len(tokens))
    )
    loads = {"micro": micro, "batch": whole, "global": whole}
    judged = quality(
        "valid", torch.cat(nats).numpy(), seq_len, text_bytes, domain.numpy(), corpus.domains
    )
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
        metrics={**judged, **batch, **row},
        random=random_values({"random_load": loads}, experts, top_k),
    )


def _transformers() -> Any:
    try:
        # by name: its lazy package of all models takes a type checker half a minute to read
        return importlib.import_module("transformers")
    except ImportError:
        raise ConfigError(
            "--hf: needs the transformers library; pip install 'moebench[huggingface]'"
        ) from None


def _load(directory: Path, library: Any) -> tuple[Any, Any]:
    """The model and the tokenizer of a folder."""
    local = {"local_files_only": True}
    try:
        model = library.AutoModelForCausalLM.from_pretrained(directory, **local)
        tokenizer = library.AutoTokenizer.from_pretrained(directory, **local)
    except Exception as error:  # the library raises a dozen kinds
        raise ConfigError(
            f"--hf={directory}: cannot be loaded ({str(error).splitlines()[0]})"
        ) from None
    if not tokenizer.is_fast:
        raise ConfigError(f"--hf={directory}: has a slow tokenizer, which tells no offsets")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval(), tokenizer


def _tokens(
    corpus: Corpus, domain: str, tokenizer: Any, sequences: int, seq_len: int
) -> tuple[np.ndarray, np.ndarray]:
    """[sequences, seq_len + 1] tokens of a domain, and [sequences] bytes of their targets."""
    wanted = sequences * (seq_len + 1)
    text = corpus.tokenizer.decode(corpus.valid(domain, "test")[: wanted * BYTES_A_TOKEN])
    made = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, ends = made["input_ids"], made["offset_mapping"]
    if len(ids) < wanted:
        room = len(ids) // (seq_len + 1)
        remedy = f"lower --sequences to {room}" if room else "lower --seq-len"
        raise DataError(
            f"--data: domain {domain!r} has room for {room} sequences of {seq_len + 1} tokens in "
            f"its test half; {remedy}, or add validation text"
        )
    tokens = np.array(ids[:wanted], np.int64).reshape(sequences, seq_len + 1)
    # a character's bytes belong to the token that ends it
    size = np.concatenate([[0], np.cumsum([len(each.encode()) for each in text])])
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
        raise ConfigError(f"--hf={directory}: the model gives no router_logits; is it an MoE?")
    top_k = getattr(model.config, "num_experts_per_tok", None)
    if not isinstance(top_k, int):
        raise ConfigError(f"--hf={directory}: its config has no num_experts_per_tok")
    targets = tokens[:, 1:].to(model.device)
    logits = out.logits.float().transpose(1, 2)
    nats = F.cross_entropy(logits, targets, reduction="none").double().sum(1).cpu()
    sequences, length = inputs.shape
    routing = [observe(each.reshape(sequences, length, -1).cpu(), top_k=top_k) for each in layers]
    return nats, join(routing, along="layers")

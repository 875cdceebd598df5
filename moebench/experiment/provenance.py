"""The manifest of a run: what was run, on what data and machine, with which code."""

import platform
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import torch

import moebench
from moebench.checkout import commit
from moebench.config.identity import (
    arm_hash,
    coefficients,
    label,
    run_hash,
    run_name,
    science,
)
from moebench.config.treatment import Treatment, routed_len
from moebench.data.batches import make_batches, sequences_hash
from moebench.data.corpus import Corpus
from moebench.data.maps import make_map
from moebench.errors import ConfigError
from moebench.experiment.summary import random_baselines
from moebench.train.build import blank_model
from moebench.train.products import shape_dependent, shapes_of

# What may differ in a later session of a run.
OF_SESSION = (
    *("moebench", "git", "torch", "python", "device_name", "threads", "stacked", "command"),
    *("shape_dependent", "start"),
)

_known = lru_cache(shape_dependent)


def describe(
    treatment: Treatment, corpus: Corpus, device: torch.device, command: str
) -> dict[str, Any]:
    """The manifest of a run.

    Args:
        treatment: of a config with `run` resolved.
        command: the command line.
    """
    config = treatment.config
    size, routing_map = treatment.group_bsz, make_map(config, corpus)
    return {
        "run": run_name(treatment, corpus.content_hash),
        "hash": run_hash(treatment, corpus.content_hash),
        "arm": label(treatment),
        "arm_hash": arm_hash(treatment, corpus.content_hash),
        "seed": config.seed,
        "science": science(treatment, corpus.content_hash),
        "domains": list(corpus.domains),
        "heldout": list(corpus.heldout),
        "data": {
            "content_hash": corpus.content_hash,
            "source": config.data.source,
            "tokenizer": corpus.tokenizer.name,
            "tokenizer_hash": corpus.tokenizer.hash,
            "vocab_size": corpus.vocab_size,
            "trigram_bits": corpus.trigram_bits,
        },
        "first_sequences": sequences_hash(make_batches(corpus, config).batch(1))[:16],
        "group": {"sequences": size, "tokens": size and size * routed_len(config)},
        **({"map": routing_map.hash} if routing_map else {}),
        "coefficient_per_router": coefficients(treatment),
        **random_baselines(treatment, corpus),
        "moebench": moebench.__version__,
        "git": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "device": device.type,
        "device_name": _device_name(device),
        "threads": config.run.threads,
        "precision": config.train.precision,
        "command": command,
        "start": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def shape_dependent_products(
    treatment: Treatment, corpus: Corpus, device: torch.device, *, fused: bool
) -> list[str] | None:
    """Kinds of the run's products whose bits depend on their shape; None if they do not work.

    Args:
        fused: whether the experts are the Triton kernels.
    """
    with torch.device("meta"):
        model = blank_model(treatment, corpus.vocab_size, len(corpus.domains))
    config = treatment.config
    sequences = config.run.device_bsz or config.global_bsz
    try:
        shapes = shapes_of(model, sequences, routed_len(config))
        return _known(shapes, str(device), fused=fused)
    except (ConfigError, RuntimeError):
        return None  # training fails likewise, and says why


def continued(first: dict[str, Any], now: dict[str, Any], step: int) -> dict[str, Any]:
    """The manifest of a run that continues from a step: that of its first session, and this one."""
    session = {"step": step, **{key: now[key] for key in OF_SESSION}}
    return {**first, "resumed": [*first.get("resumed", []), session]}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()

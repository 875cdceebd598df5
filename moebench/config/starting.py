"""The Hugging Face checkpoint that a run starts from: its sizes, and a hash of its weights.

A config holds the hash (`model.weights`), so that an identity is one of weights and not of a path.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from moebench.config.schema import ExperimentConfig
from moebench.contents import FLAG, each, fields, maybe, whole
from moebench.disk import expanded, read_json, reason, regular_status, sha256
from moebench.errors import ConfigError

MOE, DENSE = "qwen3_moe", "qwen3"
LARGE = 10**6

NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
OF_EXPERTS = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "decoder_sparse_step")
DESCRIPTION = fields(
    {name: whole(1, LARGE) for name in NEEDED},
    {
        **dict.fromkeys(OF_EXPERTS, maybe(whole(0, LARGE))),
        "mlp_only_layers": maybe(each(whole(0, LARGE))),
        **dict.fromkeys(("rope_parameters", "rope_scaling"), maybe(fields({}))),
        "norm_topk_prob": maybe(FLAG),
    },
)


class Size(NamedTuple):
    """A value of the config beside that of the checkpoint, each with its name."""

    key: str
    value: Any
    theirs: str
    wanted: Any


def complete_start(config: ExperimentConfig) -> ExperimentConfig:
    """The config with an absolute `model.init` and what the checkpoint there says of itself.

    What a config says already stays, so that a finished run outlives the checkpoint.

    Raises ConfigError for a folder without a checkpoint, or one whose sizes do not fit.
    """
    model = config.model
    if model.init is None:
        return replace(config, model=replace(model, weights={}))
    path = os.path.abspath(expanded(model.init))
    weights = model.weights if model.weights.get("from") == path else weights_of(config, path)
    return replace(config, model=replace(model, init=path, weights=weights))


def weights_of(config: ExperimentConfig, path: str) -> dict[str, str]:
    """What `model.weights` holds of a checkpoint: its folder, its class and its hash.

    Raises ConfigError for one that does not fit the config, or is not there.
    """
    where = f"model.init={path}"
    described = read_description(path)
    odd = [size for size in _sizes(config, described) if size.value != size.wanted]
    for size in odd:
        theirs = f"{size.theirs}={size.wanted}" if size.theirs else "none"
        remedy = " ".join(f"{each.key}={each.wanted}" for each in odd)
        raise ConfigError(f"{size.key}={size.value}: {where} has {theirs}; use {remedy}")
    _check_dense_layers(config, described, where)
    try:
        files = sorted(Path(path).glob("*.safetensors"))
        digests = [(file.name, _digest(file, *_changed(file))) for file in files]
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read ({reason(error)}); restore its files") from None
    if not digests:
        raise ConfigError(f"{where}: has no *.safetensors; save the model in that format")
    digest = hashlib.sha256(repr([digest for _, digest in digests]).encode()).hexdigest()[:16]
    return {"from": path, "class": described["model_type"], "hash": digest}


def read_description(path: str) -> dict[str, Any]:
    """The config.json of a checkpoint. Raises ConfigError unless it is of a class that fits."""
    where = f"model.init={path}"
    try:
        described = read_json(Path(path, "config.json"))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"{where}: has no config.json; name a folder that moebench export wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{where}/config.json: cannot be read ({reason(error)}); save the model again"
        ) from None
    if described.get("model_type") not in (MOE, DENSE):
        raise ConfigError(
            f"{where}: model_type={described.get('model_type')} has another architecture; name a "
            f"checkpoint of {MOE}, or of {DENSE}, each of whose layers becomes experts"
        )
    if described.get("quantization_config") is not None:
        raise ConfigError(
            f"{where}/config.json: quantization_config: its weights are quantised; save the model "
            "in BF16 or F32"
        )
    if "num_local_experts" in described:  # as transformers 5 calls it
        described.setdefault("num_experts", described["num_local_experts"])
    if wrong := DESCRIPTION(described, ""):
        raise ConfigError(f"{where}/config.json: {wrong}; save the model again")
    return described


def dense_layers(described: dict[str, Any]) -> set[int]:
    """The layers of a checkpoint that have no experts."""
    layers = range(described["num_hidden_layers"])
    if described["model_type"] == DENSE or not described.get("num_experts"):
        return {*layers}
    every = described.get("decoder_sparse_step") or 1
    only = described.get("mlp_only_layers") or []
    return {layer for layer in layers if layer in only or (layer + 1) % every}


def _own_dense_layers(config: ExperimentConfig) -> set[int]:
    model = config.model
    return {*range(model.dense_layers if model.moe else model.num_layers)}


def _sizes(config: ExperimentConfig, described: dict[str, Any]) -> Iterator[Size]:
    """The sizes, and the sum of a token's weights, that a config and a checkpoint must share."""
    model = config.model

    def size(key: str, theirs: str) -> Size:
        return Size(f"model.{key}", getattr(model, key), theirs, described.get(theirs))

    yield size("d_model", "hidden_size")
    yield size("num_layers", "num_hidden_layers")
    yield size("num_heads", "num_attention_heads")
    dense, own_dense = dense_layers(described), _own_dense_layers(config)
    layers = {*range(model.num_layers)}
    if layers - dense - own_dense:
        yield size("num_experts", "num_experts")
        yield size("top_k", "num_experts_per_tok")
        yield size("expert_dim", "moe_intermediate_size")
        if config.router.gate == "softmax" and model.top_k > 1:
            whole, key = bool(described.get("norm_topk_prob")), "router.renormalize"
            yield Size(key, config.router.renormalize, "norm_topk_prob", whole)
    elif (layers & dense) - own_dense:
        yield size("expert_dim", "intermediate_size")
    if model.moe:
        yield Size("model.num_shared_experts", model.num_shared_experts, "", 0)
        yield Size("model.zero_experts", model.zero_experts, "", 0)


def _check_dense_layers(config: ExperimentConfig, described: dict[str, Any], where: str) -> None:
    model, dense, own = config.model, dense_layers(described), _own_dense_layers(config)
    key = f"model.dense_layers={model.dense_layers}" if model.moe else "model.moe=false"
    if with_experts := own - dense:
        raise ConfigError(
            f"{key}: layer {min(with_experts)} of {where} has experts; use model.moe=true "
            f"model.dense_layers={len(dense)}"
        )
    width, theirs = model.top_k + model.num_shared_experts, described.get("intermediate_size")
    if own and width * model.expert_dim != theirs:
        raise ConfigError(
            f"{key}: a dense layer is model.top_k * model.expert_dim="
            f"{width * model.expert_dim} wide, and {where} has intermediate_size={theirs}; choose "
            "model.top_k and model.expert_dim whose product is that"
        )


def _changed(file: Path) -> tuple[int, int]:
    status = regular_status(file)
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=64)
def _digest(file: Path, _size: int, _time: int) -> str:
    """The SHA-256 of a file; a sweep asks for it once a run."""
    return sha256(file)

"""Checks of a config: ranges, sizes that do not divide, values that contradict each other.

Each check raises `ConfigError` for the first thing that is wrong, naming key, value and remedy. It
refuses what cannot work and never what is unwise.
"""

import math
import shlex
from dataclasses import is_dataclass
from typing import Any

from moebench.config.check_balance import check_balance, check_scopes
from moebench.config.check_method import check_method, check_router
from moebench.config.knob import knobs
from moebench.config.schema import DataConfig, ExperimentConfig, StudyConfig
from moebench.errors import ConfigError
from moebench.ranges import LARGEST, check_divides


def check_experiment(config: ExperimentConfig) -> None:
    """Raise ConfigError for ranges, and for values that cannot work together."""
    check_scopes(config)
    check_ranges(config)
    _check_model(config)
    check_divides("micro_bsz", config.micro_bsz, "global_bsz", config.global_bsz)
    check_balance(config)
    check_method(config)
    check_router(config)
    _check_run(config)
    check_source(config.data)
    _check_sampling(config.data)


def check_ranges(config: Any, prefix: str = "") -> None:
    """Raise ConfigError for the first value that is not finite or outside its range."""
    for key, field, value in knobs(config, prefix):
        if isinstance(value, list) and value and is_dataclass(value[0]):
            for number, part in enumerate(value):
                check_ranges(part, f"{key}[{number}].")
        elif value is not None:
            field.metadata["range"].check(f"{key}={value}", value)


def _check_model(config: ExperimentConfig) -> None:
    model, precision = config.model, config.train.precision
    if model.top_k > model.num_experts:
        raise ConfigError(
            f"model.top_k={model.top_k}: must be between 1 and "
            f"model.num_experts={model.num_experts}"
        )
    multiple = {"fp32": 4, "bf16": 8}.get(precision, 1)
    for key, width in (("d_model", model.d_model), ("expert_dim", model.expert_dim)):
        if width % multiple:
            other = " or train.precision=fp32" if precision == "bf16" and width % 4 == 0 else ""
            raise ConfigError(
                f"model.{key}={width}: must be a multiple of {multiple} for grouped products in "
                f"{precision}; try model.{key}={width - width % multiple + multiple}{other}"
            )
    check_divides("model.num_heads", model.num_heads, "model.d_model", model.d_model)
    if (model.d_model // model.num_heads) % 2:
        raise ConfigError(
            f"model.num_heads={model.num_heads}: rotary positions need an even "
            f"model.d_model / model.num_heads, here {model.d_model // model.num_heads}"
        )


def _check_run(config: ExperimentConfig) -> None:
    run = config.run
    if run.device_bsz is not None:
        check_divides("run.device_bsz", run.device_bsz, "global_bsz", config.global_bsz)
    if run.stack != "auto" and not (run.stack.isdecimal() and 0 < int(run.stack) <= LARGEST):
        raise ConfigError(f"run.stack={run.stack}: must be auto, or a whole number of at least 1")


def check_source(data: DataConfig) -> None:
    """Raise ConfigError for a source that lacks its input, or has an input it does not read."""
    for key, owner, what, remedy in (
        ("path", "folder", "folder", "data.path=DIR"),
        ("name", "huggingface", "dataset", "data.name=NAME"),
        ("sources", "mixture", "list", "'data.sources=[installed,\"folder path=DIR\"]'"),
    ):
        value = getattr(data, key)
        if data.source == owner and not value:
            raise ConfigError(
                f"data.{key}={value or 'null'}: data={owner} needs a {what}; add {remedy}"
            )
        if data.source != owner and value:
            raise ConfigError(
                f"data.{key}={value}: data={data.source} reads no {what}; add data={owner}"
            )


def _check_sampling(data: DataConfig) -> None:
    if data.temperature != 1 and data.sampling == "uniform":
        raise ConfigError(
            f"data.temperature={data.temperature:g}: data.sampling=uniform has no temperature; "
            "add data.sampling=proportional"
        )
    for name, weight in data.weights.items():
        if not (math.isfinite(weight) and weight > 0):
            raise ConfigError(
                f"data.weights={{{name}:{weight:g}}}: must be above 0; data.heldout=[{name}] "
                "keeps a domain from being trained on"
            )


def check_study(study: StudyConfig) -> None:
    """Raise ConfigError for a study without arms, a broken arm or a size that it does not have."""
    check_ranges(study)
    if not study.arms:
        raise ConfigError("study.arms=[]: is empty; give at least one")
    for key, texts in (("arms", study.arms), ("exclude", study.exclude)):
        for text in texts:
            try:
                shlex.split(text)
            except ValueError as error:
                raise ConfigError(
                    f"study.{key}={text}: does not parse ({error}); correct study={study.name}"
                ) from None
    for size, number in study.trials.items():
        if number < 1:
            raise ConfigError(f"study.trials.{size}={number}: must be at least 1")
    sizes = list(study.sizes) or [StudyConfig.size]
    if study.size not in sizes:
        raise ConfigError(
            f"study.size={study.size}: study={study.name} has no such size; it has "
            f"{', '.join(sizes)}"
        )

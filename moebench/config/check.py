"""What cannot work: ranges, sizes that do not divide, values that contradict each other.

Each check raises `ConfigError` for the first thing it finds, naming key, value and remedy. It
refuses what cannot work and never what is unwise.
"""

import math
import shlex
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

from moebench.config.check_method import check_method, check_router
from moebench.config.schema import (
    LARGEST,
    DataConfig,
    ExperimentConfig,
    StudyConfig,
    TermConfig,
    canonical_group,
    group_of,
    in_steps,
    knobs,
    range_words,
)
from moebench.errors import ConfigError


def check_ranges(config: Any, prefix: str = "") -> None:
    """Raise ConfigError for the first value that is not finite or outside its range."""
    for key, each, value in knobs(config, prefix):
        known = each.metadata
        if isinstance(value, list) and value and is_dataclass(value[0]):
            for number, part in enumerate(value):
                check_ranges(part, f"{key}[{number}].")
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key}={value}: must be a finite number")
        if type(value) is int and value > LARGEST:
            raise ConfigError(f"{key}={value}: must be at most {LARGEST}")
        if value is not None and not _in_range(value, known):
            raise ConfigError(f"{key}={value}: must be {range_words(known)}")


def _in_range(value: Any, known: Mapping[str, Any]) -> bool:
    low, high, above, below = (known[bound] for bound in ("low", "high", "above", "below"))
    return (
        (not known["choices"] or value in known["choices"])
        and (low is None or value >= low)
        and (high is None or value <= high)
        and (above is None or value > above)
        and (below is None or value < below)
    )


def check_study(study: StudyConfig) -> None:
    """Raise ConfigError for a study without runs, a broken arm or a size that it does not have."""
    if not study.arms:
        raise ConfigError("study.arms=[]: is empty; give at least one")
    for arm in study.arms:
        try:
            shlex.split(arm)
        except ValueError as error:
            raise ConfigError(
                f"study.arms={arm}: does not parse ({error}); correct study={study.name}"
            ) from None
    sizes = list(study.sizes) or [StudyConfig.size]
    if study.size not in sizes:
        raise ConfigError(
            f"study.size={study.size}: study={study.name} has no such size; it has "
            f"{', '.join(sizes)}"
        )


def _divides(key: str, part: int, other: str, total: int) -> None:
    if total % part:
        small = [n for n in range(1, math.isqrt(total) + 1) if total % n == 0]
        near = max(n for n in (*small, *(total // n for n in small)) if n <= part)
        raise ConfigError(f"{key}={part}: must divide {other}={total}; try {key}={near}")


def check_experiment(config: ExperimentConfig) -> None:
    """Raise ConfigError for ranges, and for values that cannot work together."""
    check_ranges(config)
    model, scope, size = config.model, config.scope, config.balance_bsz
    micro, whole = config.micro_bsz, config.global_bsz
    if model.top_k > model.num_experts:
        raise ConfigError(
            f"model.top_k={model.top_k}: must be between 1 and "
            f"model.num_experts={model.num_experts}"
        )
    multiple = {"fp32": 4, "bf16": 8}.get(config.train.precision, 1)
    for key, width in (("d_model", model.d_model), ("expert_dim", model.expert_dim)):
        if width % multiple:
            raise ConfigError(
                f"model.{key}={width}: must be a multiple of {multiple} for grouped products in "
                f"{config.train.precision}; try model.{key}={width - width % multiple + multiple}"
            )
    _divides("model.num_heads", model.num_heads, "model.d_model", model.d_model)
    if (model.d_model // model.num_heads) % 2:
        raise ConfigError(
            f"model.num_heads={model.num_heads}: rotary positions need an even "
            f"model.d_model / model.num_heads, here {model.d_model // model.num_heads}"
        )
    _divides("micro_bsz", micro, "global_bsz", whole)
    _check_group(config, "", scope, size)
    _check_balance(config)
    check_method(config)
    check_router(config)
    if config.run.device_bsz is not None:
        _divides("run.device_bsz", config.run.device_bsz, "global_bsz", whole)
    stack = config.run.stack
    if stack != "auto" and not (stack.isdecimal() and 0 < int(stack) <= LARGEST):
        raise ConfigError(f"run.stack={stack}: must be auto, or a whole number of at least 1")
    check_source(config.data)
    if config.data.temperature != 1 and config.data.sampling == "uniform":
        raise ConfigError(
            f"data.temperature={config.data.temperature:g}: data.sampling=uniform has no "
            "temperature; add data.sampling=proportional"
        )
    for name, weight in config.data.weights.items():
        if not (math.isfinite(weight) and weight > 0):
            raise ConfigError(
                f"data.weights={{{name}:{weight:g}}}: must be above 0; data.heldout=[{name}] "
                "keeps a domain from being trained on"
            )


def check_source(data: DataConfig) -> None:
    """Raise ConfigError for a source that lacks what it reads from, or has what it does not use."""
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


def _check_group(config: ExperimentConfig, where: str, scope: str, size: int | None) -> None:
    """Raise ConfigError for a balance batch size that its scope cannot have.

    Args:
        where: what stands before the key: "" for the run's own, else the term.
    """
    if size is None:
        return
    key, micro = f"{where}balance_bsz", config.micro_bsz
    _divides(key, size, "global_bsz", config.global_bsz)
    fixed = {"micro": ("micro_bsz", micro), "sequence": ("one sequence", 1)}
    if scope in fixed and size != fixed[scope][1]:
        name, value = fixed[scope]
        raise ConfigError(
            f"{key}={size}: contradicts scope={scope}, whose groups are {name} "
            f"({value}); use scope=global balance_bsz={size}"
        )
    if scope in ("none", "domain"):
        raise ConfigError(
            f"{key}={size}: scope={scope} has no groups of a fixed size; "
            "leave it out or use scope=global"
        )
    if scope == "shuffled" and size % micro:
        raise ConfigError(
            f"{key}={size}: the pool of scope=shuffled must be a multiple of micro_bsz={micro}"
        )


def _check_balance(config: ExperimentConfig) -> None:
    balance, size = config.balance, config.balance.pass_bsz
    if balance.window_steps > config.train.steps:
        raise ConfigError(
            f"balance.window_steps={balance.window_steps}: must be at most "
            f"train.steps={config.train.steps}, which is all steps there are"
        )
    if size is not None:
        if balance.estimator != "buffer":
            raise ConfigError(
                f"balance.pass_bsz={size}: only balance.estimator=buffer has logical passes; "
                "leave it out"
            )
        _divides("balance.pass_bsz", size, "global_bsz", config.global_bsz)
        shuffled = "shuffled" in {config.scope, *(term.scope for term in balance.terms)}
        if shuffled and size % config.micro_bsz:
            raise ConfigError(
                f"balance.pass_bsz={size}: must hold whole micro-batches of "
                f"micro_bsz={config.micro_bsz} for scope=shuffled to draw from"
            )
    if not balance.terms:
        return
    if config.scope not in {term.scope or config.scope for term in balance.terms}:
        raise ConfigError(
            f"scope={config.scope}: is the scope of none of balance.terms; say scope="
            f"{balance.terms[0].scope}"
        )
    if config.scope == "none":
        raise ConfigError("scope=none: contradicts balance.terms; say the scope of one of them")
    if config.loss.local:
        raise ConfigError(
            f"loss.local={config.loss.local:g}: does not go with balance.terms; add the term "
            f"{{scope:micro,weight:{config.loss.local:g}}}"
        )
    for number, term in enumerate(balance.terms):
        _check_term(config, number, term)


def _check_term(config: ExperimentConfig, number: int, term: TermConfig) -> None:
    where, steps = f"balance.terms[{number}].", config.train.steps
    scope, size = group_of(config, term)
    _check_group(config, where, scope, size)
    for key, value in (("start", term.start), ("stop", term.stop)):
        if value is not None and value >= 1 and value != int(value):
            raise ConfigError(
                f"{where}{key}={value}: must be a whole number of steps, or below 1 a share of them"
            )
    start, stop = (in_steps(each, steps) for each in (term.start, term.stop))
    if start is not None and stop is not None and start >= stop:
        raise ConfigError(
            f"{where}stop={term.stop:g}: must come after {where}start={term.start:g}, here {stop} "
            f"and {start} steps"
        )
    if start is not None and start >= steps:
        raise ConfigError(
            f"{where}start={term.start:g}: must be below train.steps={steps}, or it never acts"
        )
    if term.ramp and start is None and stop is None:
        raise ConfigError(
            f"{where}ramp={term.ramp}: is of a start or a stop; give one, as in start:0"
        )
    if term.domains and scope != "domain":
        raise ConfigError(f"{where}domains: are of scope=domain, and its scope is {scope}")
    for name, weight in term.domains.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"{where}domains.{name}={weight}: must be a finite number, 0 or more")
    for other, earlier in enumerate(config.balance.terms[:number]):
        same = canonical_group(config, *group_of(config, earlier)) == canonical_group(
            config, scope, size
        )
        if same and _overlap(term, earlier, steps):
            raise ConfigError(
                f"{where}scope={scope}: acts at the same time as balance.terms[{other}] over the "
                "same groups; say one weight in one term"
            )


def _overlap(term: TermConfig, other: TermConfig, steps: int) -> bool:
    def span(each: TermConfig) -> tuple[float, float]:
        start, stop = in_steps(each.start, steps), in_steps(each.stop, steps)
        return start or 0, math.inf if stop is None else stop + max(0, each.ramp - 1)

    (begin, end), (first, last) = span(term), span(other)
    return begin < last and first < end

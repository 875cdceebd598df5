"""Methods and routers: what cannot go together, and what is filled in of a method's options."""

import difflib
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import reduce
from typing import Any

from moebench.config.schema import ExperimentConfig, range_words, router_groups
from moebench.errors import ConfigError
from moebench.methods import LOSS, Declaration, Option, declared


def check_router(config: ExperimentConfig) -> None:
    """Raise ConfigError for what routers, methods and models cannot do together."""
    for wrong, said in _contradictions(config):
        if wrong:
            raise ConfigError(said)


def _contradictions(config: ExperimentConfig) -> Iterator[tuple[bool, str]]:
    model, router, name = config.model, config.router, config.method.name
    method = None if name == LOSS else declared(name)
    experts, groups = model.num_experts, router.expert_groups
    itself = router.gate in ("relu", "sparsemax")

    yield (
        not model.moe and name != LOSS,
        f"model.moe=false: has no router for method={name} to balance; use method=loss",
    )
    yield (
        model.dense_layers >= model.num_layers,
        f"model.dense_layers={model.dense_layers}: must be below model.num_layers="
        f"{model.num_layers}; model.moe=false makes all dense",
    )
    if method is not None:
        yield (
            bool(method.gates) and router.gate not in method.gates,
            f"method={name}: is for router.gate={' or '.join(method.gates)}, and not for "
            f"{router.gate}",
        )
        if method.offsets or method.assigns:
            why = "moves scores" if method.offsets else "assigns experts"
            yield (
                router.gate == "relu" or (method.assigns and itself),
                f"method={name}: {why}, and router.gate={router.gate} selects whatever it gives "
                "a score; use another gate",
            )
            yield (
                router.random,
                f"method={name}: {why}, and router.random draws experts; leave one of them out",
            )
    if method is not None and method.assigns:
        for key, value in (
            ("router.capacity_factor", router.capacity_factor),
            ("router.start_experts", router.start_experts),
            ("router.prune_below", router.prune_below),
            ("router.expert_groups", groups if groups > 1 else None),
        ):
            yield (
                bool(value),
                f"{key}={value}: does not go with method={name}, which gives each expert its "
                f"tokens; leave out {key}",
            )
    yield (
        router.capacity_factor is None and router.drop != "probability",
        f"router.drop={router.drop}: a dropless router drops nothing; add "
        "router.capacity_factor=1.25",
    )
    yield (
        router.group_bsz is not None and router_groups(config) is None,
        f"router.group_bsz={router.group_bsz}: is for router.capacity_factor and for methods that "
        "assign experts; leave it out",
    )
    yield (
        router.gate == "relu" and (router.random or groups > 1),
        f"router.gate=relu: selects all experts with a score, and not by "
        f"{'router.random' if router.random else 'router.expert_groups'}; leave one of them out",
    )
    yield from _group_contradictions(config)
    yield (
        experts % groups > 0,
        f"router.expert_groups={groups}: must divide model.num_experts={experts}",
    )
    yield (
        router.top_groups > groups,
        f"router.top_groups={router.top_groups}: must be between 1 and router.expert_groups="
        f"{groups}",
    )
    yield (
        model.top_k * groups > router.top_groups * experts,
        f"router.top_groups={router.top_groups}: holds {router.top_groups * experts // groups} "
        f"experts, and model.top_k={model.top_k} are wanted",
    )
    start = router.start_experts
    yield (
        start is not None and not model.top_k <= start <= experts,
        f"router.start_experts={start}: must be between model.top_k={model.top_k} and "
        f"model.num_experts={experts}",
    )
    yield (
        groups > 1 and (start is not None or router.prune_below > 0),
        f"router.expert_groups={groups}: a group could be left without experts by "
        f"router.{'start_experts' if start is not None else 'prune_below'}; leave one of them out",
    )


def _group_contradictions(config: ExperimentConfig) -> Iterator[tuple[bool, str]]:
    size = router_groups(config)
    if size is None:
        return
    key = "micro_bsz" if config.router.group_bsz is None else "router.group_bsz"
    own, valid = config.run.device_bsz, config.data.valid_sequences
    yield (
        config.global_bsz % size > 0,
        f"{key}={size}: must divide global_bsz={config.global_bsz}, which is made of such groups",
    )
    yield (
        own is not None and own % size > 0,
        f"run.device_bsz={own}: would split the router's groups of {key}={size}; use a multiple",
    )
    yield (
        config.router.capacity_factor is not None and valid % size > 0,
        f"data.valid_sequences={valid}: must be a multiple of {key}={size}, the router's groups",
    )


def check_method(config: ExperimentConfig) -> None:
    """Raise ConfigError for a method or an option that there is not, or that cannot be."""
    name, options = config.method.name, config.method.options
    if name == LOSS:
        if options:
            first = next(iter(options))
            raise ConfigError(
                f"method.options.{first}={options[first]:g}: method=loss has no options; choose a "
                "method, as in method=bias"
            )
        return
    method = declared(name)
    if config.method.plugin not in (None, method.plugin):
        raise ConfigError(
            f"method.plugin={config.method.plugin}: is another version than that at hand, "
            f"{method.plugin}; method.plugin=null takes what is at hand"
        )
    for key, value in options.items():
        _check_option(config, method, key, value)


def _check_option(config: ExperimentConfig, method: Declaration, key: str, value: float) -> None:
    said = f"method.options.{key}={value:g}"
    if key not in method.options:
        near = difflib.get_close_matches(key, method.options, 1)
        there = ", ".join(method.options) or "none"
        remedy = f"did you mean {near[0]}?" if near else f"there are {there}"
        raise ConfigError(f"{said}: method={method.name} has no such option; {remedy}")
    known = method.options[key]
    if not math.isfinite(value):
        raise ConfigError(f"{said}: must be a finite number")
    if known.whole and value != int(value):
        raise ConfigError(f"{said}: must be a whole number")
    if not _in_range(value, known):
        raise ConfigError(f"{said}: must be {range_words({**vars(known), 'choices': None})}")
    if known.divides:
        total = _of(config, known.divides)
        if total % int(value):
            near = max(n for n in range(1, int(value)) if total % n == 0)
            raise ConfigError(
                f"{said}: must divide {known.divides}={total}; try method.options.{key}={near}"
            )


def _in_range(value: float, known: Option) -> bool:
    return (
        (known.low is None or value >= known.low)
        and (known.high is None or value <= known.high)
        and (known.above is None or value > known.above)
        and (known.below is None or value < known.below)
    )


def complete_method(config: ExperimentConfig) -> ExperimentConfig:
    """The config with every option of its method, in one order, and whose plugin it is."""
    if config.method.name == LOSS:
        return config
    method, given = declared(config.method.name), config.method.options
    options = {
        key: given.get(key, default_of(config, each)) for key, each in method.options.items()
    }
    return replace(config, method=replace(config.method, options=options, plugin=method.plugin))


def default_of(config: ExperimentConfig, option: Option) -> float:
    """An option where nothing sets it."""
    return float(_of(config, option.default) if isinstance(option.default, str) else option.default)


def _of(config: ExperimentConfig, key: str) -> Any:
    return reduce(getattr, key.split("."), config)

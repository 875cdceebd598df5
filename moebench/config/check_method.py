"""Methods and routers: what cannot go together, and what is filled in of a method's options."""

import difflib
from dataclasses import replace
from functools import reduce
from typing import Any

from moebench.config.schema import ExperimentConfig, range_words
from moebench.errors import ConfigError
from moebench.methods import LOSS, Declaration, Option, declared


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

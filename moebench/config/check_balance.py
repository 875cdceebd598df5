"""Checks of scopes and balance terms: invalid group sizes, and terms that contradict each other.

Like `check`, each function raises `ConfigError` for the first thing that is wrong.
"""

import math

from moebench.config.balance_keys import TermConfig
from moebench.config.schema import ExperimentConfig
from moebench.config.treatment import canonical_group, group_of, in_steps, plugins_of, sizes_of
from moebench.errors import ConfigError
from moebench.ranges import check_divides
from moebench.registry import content_of
from moebench.scopes import GLOBAL, NONE, SCOPES, declared, default_size


def check_scopes(config: ExperimentConfig) -> None:
    """Refuse a scope of a plugin that is not loaded, or whose text is not the recorded one."""
    names = {config.scope, *(term.scope for term in config.balance.terms if term.scope)}
    recorded = {name: plugin for name, plugin in config.balance.plugins.items() if name in names}
    for name, plugin in recorded.items():
        if name not in SCOPES:
            raise ConfigError(
                f"scope={name}: is a scope of the plugin {plugin}, which is not loaded; add "
                f"--plugin with the file or module {plugin.partition('@')[0]}"
            )
    for name, plugin in plugins_of(name for name in names if name in SCOPES).items():
        if content_of(recorded.get(name, plugin)) != content_of(plugin):
            raise ConfigError(
                f"balance.plugins={{{name}:{recorded[name]}}}: is another version than that at "
                f"hand, {plugin}; balance.plugins={{}} takes what is at hand"
            )


def check_balance(config: ExperimentConfig) -> None:
    """Refuse sizes of groups, passes, windows and terms that cannot work."""
    _check_group(config, "", *group_of(config, TermConfig()))
    _check_estimator(config)
    if not config.balance.terms:
        return
    terms, local = config.balance.terms, config.loss.local
    if config.scope not in {term.scope or config.scope for term in terms}:
        raise ConfigError(
            f"scope={config.scope}: is the scope of none of balance.terms; use "
            f"scope={terms[0].scope}"
        )
    if config.scope == NONE:
        raise ConfigError("scope=none: contradicts balance.terms; use the scope of one of them")
    if local:
        raise ConfigError(
            f"loss.local={local:g}: does not go with balance.terms; add the term "
            f"{{scope:micro,weight:{local:g}}}"
        )
    for number, term in enumerate(terms):
        where = f"balance.terms[{number}]."
        if term.scope == NONE:
            raise ConfigError(f"{where}scope=none: balances nothing; leave the term out")
        _check_group(config, where, *group_of(config, term))
        _check_moments(term, where, config.train.steps)
        _check_domains(config, term, where)
        _check_overlap(config, number, where)


def _check_group(config: ExperimentConfig, where: str, name: str, size: int | None) -> None:
    """Refuse a `balance_bsz` that its scope does not allow.

    Args:
        where: the prefix of the key: "" for the run's own, else that of the term.
    """
    if size is None:
        return
    key, scope, sizes = f"{where}balance_bsz", declared(name), sizes_of(config)
    check_divides(key, size, "global_bsz", config.global_bsz)
    only = default_size(name, sizes)
    if only is None:
        raise ConfigError(
            f"{key}={size}: scope={name} has no groups of a fixed size; leave it out or use "
            f"scope={GLOBAL}"
        )
    if scope.fixed and size != only:
        words = f"{scope.size}={only}" if isinstance(scope.size, str) else only
        raise ConfigError(
            f"{key}={size}: contradicts scope={name}, whose groups hold {words} sequences; use "
            f"scope={GLOBAL} balance_bsz={size}"
        )
    if isinstance(scope.multiple, str) and size % sizes[scope.multiple]:
        raise ConfigError(
            f"{key}={size}: must be a multiple of {scope.multiple}={sizes[scope.multiple]} for "
            f"scope={name}"
        )


def _check_estimator(config: ExperimentConfig) -> None:
    balance, size = config.balance, config.balance.pass_bsz
    if balance.window_steps > config.train.steps:
        raise ConfigError(
            f"balance.window_steps={balance.window_steps}: must be at most "
            f"train.steps={config.train.steps}, the steps of the run"
        )
    if size is None:
        return
    if balance.estimator != "buffer":
        raise ConfigError(
            f"balance.pass_bsz={size}: only balance.estimator=buffer has logical passes; "
            "leave it out"
        )
    check_divides("balance.pass_bsz", size, "global_bsz", config.global_bsz)
    for name in dict.fromkeys([config.scope, *(term.scope for term in balance.terms)]):
        if name and declared(name).draws and size % config.micro_bsz:
            raise ConfigError(
                f"balance.pass_bsz={size}: must hold whole micro-batches of "
                f"micro_bsz={config.micro_bsz} for scope={name} to draw from"
            )


def _check_moments(term: TermConfig, where: str, steps: int) -> None:
    """Refuse an invalid start, stop or ramp."""
    for key, value in (("start", term.start), ("stop", term.stop)):
        if value is not None and value >= 1 and value != int(value):
            raise ConfigError(
                f"{where}{key}={value}: must be a whole number of steps, or below 1 a share of them"
            )
    start, stop = in_steps(term.start, steps), in_steps(term.stop, steps)
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
            f"{where}ramp={term.ramp}: needs a start or a stop; give one, as in start:0"
        )


def _check_domains(config: ExperimentConfig, term: TermConfig, where: str) -> None:
    """Refuse weights of domains for a scope without domains, and invalid weights."""
    scope = declared(group_of(config, term)[0])
    if term.domains and not scope.domains:
        raise ConfigError(
            f"{where}domains: need scope=domain, and the scope is {scope.name}; leave them out"
        )
    for name, weight in term.domains.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"{where}domains.{name}={weight}: must be a finite number, 0 or more")


def _check_overlap(config: ExperimentConfig, number: int, where: str) -> None:
    """Refuse a term that acts at the same time as an earlier one over the same groups."""
    *earlier, term = config.balance.terms[: number + 1]
    first, last = _span(term, config.train.steps)
    for other, before in enumerate(earlier):
        begin, end = _span(before, config.train.steps)
        same = canonical_group(config, before) == canonical_group(config, term)
        if same and first < end and begin < last:
            raise ConfigError(
                f"{where}scope={group_of(config, term)[0]}: acts at the same time as "
                f"balance.terms[{other}] over the same groups; give one term one weight"
            )


def _span(term: TermConfig, steps: int) -> tuple[float, float]:
    """The steps after which a term starts and stops."""
    start, stop = in_steps(term.start, steps), in_steps(term.stop, steps)
    return start or 0, math.inf if stop is None else stop + max(0, term.ramp - 1)

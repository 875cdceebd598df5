"""What a config means: which losses act over what, how strongly and when, in one canonical form.

Configs that mean the same have equal treatments: `scope=micro` is `scope=global
balance_bsz=<micro_bsz>`, a weight of 0 is `scope=none`, a shuffled pool of one micro-batch is that
micro-batch, and a single term that always acts is the key `scope`.

A run computes its `Treatment` once and hands it on. Functions that need one take a `Meaning`: a
treatment, or a config to compute it from.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

from moebench import methods, scopes
from moebench.config.balance_keys import TermConfig
from moebench.config.schema import ExperimentConfig
from moebench.methods import Option


@dataclass(frozen=True)
class BalanceTerm:
    """A balance loss that acts at some time in training.

    Attributes:
        scope: the canonical name, as `scopes.canonical` returns it.
        balance_bsz: sequences in a group; None for a scope without groups of a fixed size.
        weight: of the unscaled loss in the objective.
        start, stop: in steps done; None: from the first, to the last.
        ramp: in steps; 0: none.
        domains: the weights of domains that differ from 1, sorted by name.
    """

    scope: str
    balance_bsz: int | None
    weight: float
    start: int | None = None
    stop: int | None = None
    ramp: int = 0
    domains: tuple[tuple[str, float], ...] = ()

    @property
    def always(self) -> bool:
        """Whether the term acts evenly in every step and on every domain."""
        return self.start is None and self.stop is None and not self.domains


@dataclass(frozen=True)
class EstimatorChoice:
    """The estimator of f, with the values that it uses: `pass_bsz` of buffer, `decay` of ema."""

    name: str
    pass_bsz: int | None = None
    decay: float | None = None


@dataclass(frozen=True)
class Treatment:
    """The meaning of a config.

    Attributes:
        config: the config itself, for keys that mean what they say.
        terms: the balance losses; earlier ones first, of those the heaviest.
        estimator: of f.
        gate: the router's gate.
        renormalize: whether the weights of the selected experts are scaled to sum to 1.
        counts: the selection that f counts.
        drop: what a full expert keeps.
        group_worth: by what groups of experts are ranked.
        method_options: the options of the method that differ from their defaults.
        router_bsz: sequences in a logical group of the router; None: it looks at single tokens.
        plugins: `module@hash` of each scope among the terms that moebench does not ship.
    """

    config: ExperimentConfig
    terms: tuple[BalanceTerm, ...]
    estimator: EstimatorChoice
    gate: str
    renormalize: bool
    counts: str
    drop: str
    group_worth: str
    method_options: Mapping[str, float]
    router_bsz: int | None
    plugins: Mapping[str, str]

    @classmethod
    def of(cls, config: "ExperimentConfig | Treatment") -> "Treatment":
        """The treatment of a complete and checked config; a treatment is returned as it is."""
        if isinstance(config, Treatment):
            return config
        terms = balance_terms(config)
        gate, renormalize = _gate(config)
        return cls(
            config,
            terms,
            _estimator(config, terms),
            gate,
            renormalize,
            _counts(config),
            _drop(config, renormalize),
            _group_worth(config),
            _method_options(config, gate),
            router_bsz(config),
            plugins_of(term.scope for term in terms),
        )

    @property
    def coefficients(self) -> tuple[float, ...]:
        """What multiplies E * sum_i f_i P_i of one router in the objective, for each term.

        With f summing to 1 and P the mean over the step's tokens, whatever the conventions for
        layers and top-k, so that weights compare with those of other systems.
        """
        balance, model = self.config.balance, self.config.model
        uniform = model.top_k if balance.uniform == "k" else 1
        layers = 1 if balance.layers == "sum" else moe_layers(self.config)
        return tuple(term.weight * uniform / layers for term in self.terms)

    @property
    def group_bsz(self) -> int | None:
        """Sequences in a balance group of the heaviest term that does not stop; None: no such."""
        terms = [term for term in self.terms if term.stop is None]
        return max(terms, key=lambda term: term.weight).balance_bsz if terms else None


Meaning = ExperimentConfig | Treatment


def sizes_of(config: ExperimentConfig) -> scopes.Sizes:
    """The sizes by which scopes are measured."""
    return {"micro_bsz": config.micro_bsz, "global_bsz": config.global_bsz}


def group_of(config: ExperimentConfig, term: TermConfig) -> tuple[str, int | None]:
    """Scope and `balance_bsz` of a term, which takes what it leaves out from the run."""
    scope = term.scope or config.scope
    size = term.balance_bsz
    if size is None and scope == config.scope:
        size = config.balance_bsz
    return scope, scopes.default_size(scope, sizes_of(config)) if size is None else size


def canonical_group(config: ExperimentConfig, term: TermConfig) -> tuple[str, int | None]:
    """The same in canonical form: equal for terms over equal groups."""
    return scopes.canonical(*group_of(config, term), sizes_of(config))


def in_steps(value: float | None, steps: int) -> int | None:
    """A moment of training in steps done; below 1 it is a share of all `steps`."""
    if value is None:
        return None
    return round(value * steps) if value < 1 else int(value)


def moe_layers(config: ExperimentConfig) -> int:
    """How many layers have a router."""
    return config.model.num_layers - config.model.dense_layers if config.model.moe else 0


def map_layers(config: ExperimentConfig) -> int:
    """How many layers have a prescribed router, the first ones with a router."""
    if config.router.map == "none":
        return 0
    layers = moe_layers(config)
    return min(layers, config.router.hash_layers or layers)


def routed_len(config: ExperimentConfig) -> int:
    """Tokens of a sequence that are routed: those of its text, and one that names its domain."""
    return config.seq_len + config.data.domain_token


def router_bsz(config: ExperimentConfig) -> int | None:
    """Sequences in a logical group of the router; None where it looks at single tokens."""
    assigns = methods.declared(config.method.name).assigns
    if config.router.capacity_factor is None and not assigns:
        return None
    return config.router.group_bsz or config.micro_bsz


def default_option(config: ExperimentConfig, option: Option) -> float:
    """The value of a method's option where nothing sets it."""
    default = option.default
    return float(lookup(config, default) if isinstance(default, str) else default)


def lookup(config: ExperimentConfig, key: str) -> Any:
    """The value of a dotted key."""
    return reduce(getattr, key.split("."), config)


def balance_terms(config: ExperimentConfig) -> tuple[BalanceTerm, ...]:
    """The balance losses that ever act, in one order."""
    if config.scope == scopes.NONE or not config.model.moe:
        return ()
    terms = [_term(config, term) for term in config.balance.terms or [TermConfig()]]
    if local := config.loss.local:  # where there are no terms
        micro = _term(config, TermConfig(scope="micro", weight=local))
        if replace(micro, weight=0) == replace(terms[0], weight=0):
            terms = [_term(config, TermConfig(weight=1 + local))]
        else:
            terms.append(micro)
    acting = [term for term in terms if term.weight and (term.stop != 0 or term.ramp)]
    return tuple(sorted(acting, key=_place))


def _place(term: BalanceTerm) -> tuple[Any, ...]:
    return term.start or 0, -term.weight, term.scope, term.balance_bsz or 0


def _term(config: ExperimentConfig, term: TermConfig) -> BalanceTerm:
    scope, size = canonical_group(config, term)
    steps = config.train.steps
    start, stop = in_steps(term.start, steps), in_steps(term.stop, steps)
    start = start if start or term.ramp > 1 else None
    stop = stop if stop is not None and stop < steps else None
    scheduled = start is not None or stop is not None
    return BalanceTerm(
        scope,
        size,
        weight=config.loss.balance * term.weight,
        start=start,
        stop=stop,
        ramp=term.ramp if scheduled and term.ramp > 1 else 0,  # a ramp of one step has no effect
        domains=tuple(
            sorted((name, factor) for name, factor in term.domains.items() if factor != 1)
        ),
    )


def _estimator(config: ExperimentConfig, terms: tuple[BalanceTerm, ...]) -> EstimatorChoice:
    """The canonical form of `balance.estimator` for some terms.

    A prefix over logical passes that hold whole groups is exact; a moving average that forgets at
    once is the last step.
    """
    balance = config.balance
    if balance.estimator == "buffer":
        passes = balance.pass_bsz or config.micro_bsz
        if all(_holds_whole_groups(passes, term) for term in terms):
            return EstimatorChoice("exact")
        return EstimatorChoice("buffer", pass_bsz=passes)
    if balance.estimator == "ema":
        if balance.decay == 0:
            return EstimatorChoice("stale")
        return EstimatorChoice("ema", decay=balance.decay)
    return EstimatorChoice(balance.estimator)


def _holds_whole_groups(pass_bsz: int, term: BalanceTerm) -> bool:
    size = term.balance_bsz
    return scopes.declared(term.scope).contiguous and bool(size) and pass_bsz % size == 0


def _gate(config: ExperimentConfig) -> tuple[str, bool]:
    """The gate, and whether it renormalizes, in canonical form.

    The softmax over the selected logits is the renormalized one over all. Where only the order of
    the scores counts, both select the same experts. The weight of a single expert is never
    renormalized: it would be 1 whatever the logits, and a router without a gradient.
    """
    router, method = config.router, methods.declared(config.method.name)
    single = config.model.top_k == 1 and router.gate != "relu"
    renormalize = router.renormalize and not single
    more_than_order = (
        method.assigns
        or method.offsets
        or router.expert_groups > 1
        or router.capacity_factor is not None
    )
    if router.gate == "topk_softmax":
        return (router.gate if more_than_order else "softmax"), True
    if router.gate == "softmax" and renormalize and _by_logits(config):
        return "topk_softmax", True
    return router.gate, renormalize


def _by_logits(config: ExperimentConfig) -> bool:
    """Whether an option of the method has experts selected by logits."""
    option = methods.declared(config.method.name).by_logits
    return option is not None and bool(config.method.options.get(option))


def _counts(config: ExperimentConfig) -> str:
    """`balance.counts` in canonical form: of equal selections the first that it may name."""
    router, counts = config.router, config.balance.counts
    if counts == "first" and config.model.top_k == 1 and router.gate != "relu":
        counts = "scores"
    if counts == "biased" and not methods.declared(config.method.name).offsets:
        counts = "grouped"
    if counts == "grouped" and router.top_groups == router.expert_groups:
        counts = "scores"
    return counts


def _drop(config: ExperimentConfig, renormalize: bool) -> str:
    """`router.drop` in canonical form: a weight that is not renormalized is the score."""
    same = not renormalize and not _by_logits(config)
    return "probability" if config.router.drop == "weight" and same else config.router.drop


def _group_worth(config: ExperimentConfig) -> str:
    """`router.group_worth` in canonical form: a share of one or two experts has another name."""
    router = config.router
    if router.group_worth != "share":
        return router.group_worth
    named = {1: "max", 2: "top_two"}
    return named.get(max(1, config.model.top_k // router.top_groups), "share")


def _method_options(config: ExperimentConfig, gate: str) -> dict[str, float]:
    method = methods.declared(config.method.name)
    return {
        key: value
        for key, value in config.method.options.items()
        if value != default_option(config, method.options[key])
        and not (key == method.by_logits and gate == "topk_softmax")  # which selects by them anyway
    }


def plugins_of(names: Iterable[str]) -> dict[str, str]:
    """`module@hash` of each of some scopes that moebench does not ship, sorted by name."""
    plugins = {name: scopes.declared(name).plugin for name in sorted(set(names))}
    return {name: plugin for name, plugin in plugins.items() if plugin is not None}

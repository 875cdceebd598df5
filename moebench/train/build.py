"""The objects of a run, made from its config: the model, the objective, the optimizer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from moebench.balance import Estimator, Schedule, Scope, Term, make_method, make_scope
from moebench.config.identity import term_label
from moebench.config.replayed import replays
from moebench.config.schema import ExperimentConfig
from moebench.config.treatment import BalanceTerm, Meaning, Treatment, in_steps
from moebench.errors import ConfigError
from moebench.methods import declared
from moebench.model.router import Gating
from moebench.model.transformer import MoETransformer, initialize, perturb_routers
from moebench.train.average import begin
from moebench.train.optimizer import AdamW, make_optimizer
from moebench.train.starting import start_from
from moebench.train.step import Objective

COMPUTE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


@dataclass
class State:
    """The state of a run after a step.

    `balance` holds the state of each balance term and method, and `load` the recent loads of the
    experts. Both are None before the first step. `average` holds the averaged weights by name; None
    without `optim.ema`.
    """

    model: MoETransformer
    optimizer: AdamW
    step: int = 0
    balance: list[Any] | None = None
    load: Tensor | None = None
    average: dict[str, Tensor] | None = None


def make_model(config: Meaning, vocab_size: int, domains: int = 0) -> MoETransformer:
    """The model of a config, with its initial weights: drawn by its seed, or of `model.init`.

    Args: as for `blank_model`.

    Raises ConfigError for a checkpoint that does not fit.
    """
    treatment = Treatment.of(config)
    config, model = treatment.config, blank_model(treatment, vocab_size, domains)
    initialize(model, config.seed, config.router.init)
    if config.model.init:
        start_from(model, config)
    if config.router.perturb:
        perturb_routers(model, config.seed, config.router.perturb)
    return model


def blank_model(config: Meaning, vocab_size: int, domains: int = 0) -> MoETransformer:
    """The model of a config, with weights of any value.

    Args:
        vocab_size: tokens of text.
        domains: of the data, which have a token each under `data.domain_token`.
    """
    treatment = Treatment.of(config)
    config = treatment.config
    assert domains or not config.data.domain_token, "domain tokens need the number of domains"
    shape = config.model
    return MoETransformer(
        vocab_size=vocab_size,
        d_model=shape.d_model,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        num_experts=shape.num_experts,
        top_k=shape.top_k,
        expert_dim=shape.expert_dim,
        num_shared_experts=shape.num_shared_experts,
        zero_experts=shape.zero_experts,
        gating=make_gating(treatment),
        dense_layers=shape.dense_layers if shape.moe else shape.num_layers,
        compute=COMPUTE[config.train.precision],
        document_end=vocab_size - 1 if config.data.mask_documents else None,
        domains=domains if config.data.domain_token else 0,
    )


def make_gating(treatment: Treatment) -> Gating:
    """How the routers select experts."""
    router, chosen = treatment.config.router, treatment.config.method
    method = make_method(chosen.name, chosen.options)
    return Gating(
        gate=cast(Any, treatment.gate),
        form=cast(Any, router.form),
        bias=router.gate_bias,
        softcap=router.softcap,
        renormalize=treatment.renormalize,
        shared_gate=treatment.config.model.num_shared_experts if router.shared_gate else 0,
        scale=router.scale,
        expert_scale=router.expert_scale,
        jitter=router.jitter,
        noise=router.noise,
        expert_groups=router.expert_groups,
        top_groups=router.top_groups,
        group_worth=cast(Any, treatment.group_worth),
        random=router.random,
        round_robin=router.round_robin,
        capacity_factor=router.capacity_factor,
        drop=cast(Any, treatment.drop),
        group_bsz=treatment.router_bsz or 1,
        method=method if declared(chosen.name).assigns else None,
        shift=method if declared(chosen.name).shifts else None,
        threshold=declared(chosen.name).thresholds,
        partial=replays(treatment.config),
        by_logits=method is not None and method.by_logits,
        counts=cast(Any, treatment.counts),
        observes=frozenset() if method is None else method.observes,
    )


def make_schedule(config: ExperimentConfig) -> Schedule | None:
    """The schedule by which experts are added and pruned; None if all are always there."""
    router = config.router
    if router.start_experts is None and not router.prune_below:
        return None
    return Schedule(
        config.model.top_k,
        start=router.start_experts,
        full_at=in_steps(router.full_at, config.train.steps) or 0,
        prune_below=router.prune_below,
        prune_every=router.prune_every,
    )


def make_objective(config: Meaning, domains: Sequence[str]) -> Objective:
    """The objective in its canonical form, so that equal treatments compute equal bits.

    Raises ConfigError for the weight of a domain that the data does not have.
    """
    treatment = Treatment.of(config)
    config, estimator = treatment.config, treatment.estimator
    balance = config.balance
    method = make_method(config.method.name, config.method.options)
    methods = [each for each in (method, make_schedule(config)) if each is not None]
    return Objective(
        terms=tuple(make_term(treatment, term, domains) for term in treatment.terms),
        micro_bsz=config.micro_bsz,
        z=config.loss.z,
        estimator=Estimator(
            cast(Any, estimator.name),
            pass_bsz=estimator.pass_bsz,
            window_steps=balance.window_steps,
            decay=estimator.decay or 0.0,
        ),
        layers=cast(Any, balance.layers),
        uniform=config.model.top_k if balance.uniform == "k" else 1.0,
        probs=cast(Any, balance.probs),
        methods=tuple(methods),
    )


def make_term(treatment: Treatment, term: BalanceTerm, domains: Sequence[str]) -> Term:
    """A balance term over the domains of the data."""
    weights = dict(term.domains)
    for name in sorted(weights.keys() - set(domains)):
        raise ConfigError(
            f"balance.terms: the data has no domain {name}; its domains are {', '.join(domains)}"
        )
    scope = make_scope(
        term.scope,
        micro_bsz=treatment.config.micro_bsz,
        balance_bsz=term.balance_bsz,
        num_domains=len(domains),
    )
    if plugin := treatment.plugins.get(term.scope):
        _check_plugin(term.scope, plugin, cast(Scope, scope), treatment.config.global_bsz)
    return Term(
        cast(Scope, scope),
        weight=term.weight,
        start=term.start,
        stop=term.stop,
        ramp=term.ramp,
        domain_weights=tuple(weights.get(name, 1.0) for name in domains) if weights else None,
        label=term_label(treatment, term),
    )


def _check_plugin(name: str, plugin: str, scope: Scope, sequences: int) -> None:
    """Raise ConfigError for a plugin's scope whose groups cannot be used."""

    def refuse(what: str) -> ConfigError:
        return ConfigError(f"scope={name}: {what}; correct the plugin {plugin}")

    try:
        domain = torch.zeros(sequences, dtype=torch.long)
        groups, number = scope.labels(sequences, domain=domain)
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise refuse(f"its labels raise {why}") from None
    if groups.shape != (sequences,):
        raise refuse(f"its labels have the shape {list(groups.shape)}, and must have [{sequences}]")
    if groups.is_floating_point() or groups.min() < 0 or groups.max() >= number:
        raise refuse(f"its labels must be whole numbers from 0 to {number - 1}")


def make_state(config: Meaning, vocab_size: int, device: torch.device, domains: int = 0) -> State:
    """The state before the first step.

    Args: as for `blank_model`.
    """
    treatment = Treatment.of(config)
    model = make_model(treatment, vocab_size, domains).to(device)
    config = treatment.config
    return State(model, make_optimizer(model, config.optim), average=begin(model, config))

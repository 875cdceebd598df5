"""Routers and methods in whole steps: results must not depend on how a step is split.

Losses, gradients, states and every metric of a row after a few steps are compared with those of one
pass on one rank, over splits, orders and ranks (real processes, gloo).
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from moebench.balance import Estimator, Global, Method, Micro, Schedule, Term
from moebench.balance.assignment import ExpertChoice
from moebench.balance.bias import Bias
from moebench.balance.controlled import Budget, Smebu
from moebench.balance.coupling import Coupling
from moebench.balance.importance import Importance
from moebench.balance.moving import CausalBias, MovingQuantile
from moebench.balance.penalized import LoadErrorInjection
from moebench.balance.quantile import Quantile
from moebench.balance.threshold import Threshold
from moebench.model.router import Gating
from moebench.model.transformer import MoETransformer, initialize
from moebench.train.gradients import accumulate_gradients
from moebench.train.measure import recent_load, step_metrics
from moebench.train.ranks import Ranks, joined
from moebench.train.step import Objective, Step
from tests.processes import on_ranks

SEQUENCES, LENGTH, MICRO, STEPS = 8, 6, 2, 3
BOUND = 1e-10  # of a relative error in fp64
METRIC_BOUND = 1e-6  # of a metric, whose f is in fp32


class Case(NamedTuple):
    """A router, the methods, the estimator, a map by token, zero-computation and shared experts.

    Where the gating is `partial`, some slots of the map are empty.
    """

    gating: Gating = Gating()
    methods: tuple[Method, ...] = ()
    estimator: Estimator = Estimator()
    prescribed: bool = False
    zero_experts: int = 0
    shared: int = 0


CASES = {
    "sigmoid": Case(Gating("sigmoid")),
    "relu": Case(Gating("relu", renormalize=False)),
    "jitter": Case(Gating(jitter=0.3)),
    "noise": Case(Gating(noise=1.0)),
    "random": Case(Gating(random=True)),
    "round robin": Case(Gating(round_robin=True)),
    "capacity": Case(Gating(capacity_factor=1.0, group_bsz=MICRO)),
    "prescribed": Case(prescribed=True),
    "replayed": Case(Gating("sigmoid", partial=True), prescribed=True),
    "groups and a shared expert in the gate": Case(
        Gating("sigmoid", shared_gate=1, expert_groups=4, top_groups=2, group_worth="max"),
        shared=1,
    ),
    "bias": Case(Gating("sigmoid"), (Bias(0.05),)),
    "bias on logits": Case(Gating("sqrt_softplus", by_logits=True), (Bias(0.05, logits=1),)),
    "bias over micro-batches": Case(methods=(Bias(0.05, MICRO),)),
    "multiplicative bias": Case(methods=(Bias(0.05, multiplicative=1, centred=1),)),
    "bias and stale f": Case(Gating(noise=0.5), (Bias(0.05),), Estimator("stale")),
    "quantile": Case(Gating(observes=Quantile.observes), (Quantile(),)),
    "threshold": Case(
        Gating("sigmoid", renormalize=False, threshold=True, observes=Threshold.observes),
        (Threshold(0.5),),
    ),
    "moving quantile": Case(
        Gating("sigmoid", shift=MovingQuantile(), observes=MovingQuantile.observes),
        (MovingQuantile(),),
    ),
    "causal bias": Case(Gating(shift=CausalBias()), (CausalBias(),)),
    "load error": Case(Gating(observes=frozenset({"logits"})), (LoadErrorInjection(1.0),)),
    "smebu": Case(Gating("sigmoid", softcap=2.0, scale=1.5, expert_scale=True), (Smebu(0.05),)),
    "budget": Case(methods=(Budget(1.0, zero_experts=2),), zero_experts=2),
    "first choices": Case(Gating(counts="first")),
    "importance and load": Case(
        Gating(noise=1.0, observes=frozenset({"soft_counts"})),
        (Importance(load=0.1, balance_bsz=MICRO),),
    ),
    "coupling": Case(methods=(Coupling(),)),
    "expert choice": Case(Gating(method=ExpertChoice(), group_bsz=MICRO)),
    "growth and pruning": Case(
        methods=(Schedule(2, start=3, full_at=2, prune_below=0.9, prune_every=2),)
    ),
}


class Result(NamedTuple):
    """The result of the last of a few steps."""

    losses: Tensor
    gradients: dict[str, Tensor]
    states: list[Any]
    row: dict[str, Any]


def model_of(gating: Gating, zero_experts: int = 0, shared: int = 0) -> MoETransformer:
    model = MoETransformer(
        vocab_size=16,
        d_model=16,
        num_layers=2,
        num_heads=2,
        num_experts=8,
        zero_experts=zero_experts,
        num_shared_experts=shared,
        top_k=2,
        expert_dim=8,
        compute=torch.float64,
        gating=gating,
    )
    initialize(model, 0)
    with torch.no_grad():
        for weight in model.router_weights:
            weight.mul_(20)
    return model


def run(
    case: Case, device_bsz: int = SEQUENCES, ranks: Ranks | None = None, reverse: bool = False
) -> Result:
    model, ranks = model_of(case.gating, case.zero_experts, case.shared), ranks or Ranks()
    terms = (Term(Global(), 5.0), Term(Micro(MICRO), 0.5))
    what = Objective(terms, MICRO, z=0.1, estimator=case.estimator, methods=case.methods)
    draw, states = torch.Generator().manual_seed(0), None
    losses, load, row = torch.zeros(()), None, {}
    expert = torch.arange(2 * 16).view(2, 16) % 7
    experts = torch.stack([expert, expert + 1], -1)  # [layers, tokens, slots]
    if case.gating.partial:
        experts[:, ::3, 1] = -1
    for number in range(1, STEPS + 1):
        low = torch.arange(4).roll(number).repeat_interleave(MICRO)[:, None] * 4
        passes = SEQUENCES // (device_bsz * ranks.size)
        tokens = low + torch.randint(0, 4, (SEQUENCES, LENGTH + 1), generator=draw)
        step = Step(
            tokens,
            device_bsz,
            number=number,
            seed=7 + number,
            draws=case.gating.draws,
            ranks=ranks,
            order=range(passes)[::-1] if reverse else None,
            forced=experts[:, tokens[:, :-1]] if case.prescribed else None,
            uncounted=int(case.prescribed),
        )
        model.zero_grad()
        outcome = accumulate_gradients(model, what, step, states)
        states = outcome.states
        losses = torch.stack([outcome.cross_entropy, *(value for _, value in outcome.balance)])
        row = step_metrics(outcome, what, before=load, assignment_bytes=1)()
        load = recent_load(load, outcome)
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return Result(losses, gradients, states or [], row)


@cache
def reference(name: str) -> Result:
    """Of one pass on one rank."""
    return run(CASES[name])


def error(result: Result, expected: Result) -> float:
    """The worst relative error; infinite if a state or metric differs by more than rounding."""
    off = [(result.losses - expected.losses).norm() / expected.losses.norm()]
    for name, each in expected.gradients.items():
        off.append((result.gradients[name] - each).norm() / max(each.norm(), 1e-12))
    for one, other in zip(result.states, expected.states, strict=True):
        for a, b in zip(one or (), other or (), strict=True):
            same = torch.allclose(a.double(), b.double(), atol=1e-6)
            off.append(torch.tensor(0.0 if same else torch.inf))
    assert result.row.keys() == expected.row.keys()
    for name, metric in expected.row.items():
        if result.row[name] != pytest.approx(metric, rel=METRIC_BOUND, abs=METRIC_BOUND):
            print(f"{name} is {result.row[name]}, and in one pass on one rank {metric}")
            off.append(torch.tensor(torch.inf))
    return max(float(each) for each in off)


def measure(ranks: Ranks, expected: Mapping[str, Result]) -> dict[str, float]:
    """The worst error of each case: over one pass a rank, and over two that come in reverse."""
    own = SEQUENCES // ranks.size
    return {
        name: max(
            error(run(case, size, ranks, reverse), expected[name])
            for size, reverse in ((own, False), (own // 2, True))
        )
        for name, case in CASES.items()
    }


def measure_on_ranks(size: int) -> dict[str, float]:
    """The worst error of each case over `size` processes."""
    expected = {name: reference(name) for name in CASES}
    tables: list[dict[str, float]] = on_ranks(_as_rank, size, expected)
    return {name: max(table[name] for table in tables) for name in CASES}


def _as_rank(expected: Mapping[str, Result]) -> dict[str, float]:
    torch.set_num_threads(1)
    with joined("cpu") as ranks:
        return measure(ranks, expected)

"""Quality against balance over several weights: scopes compared at the best weight of each.

A wider scope has a smaller balance loss at the same weight, so a comparison at one weight says
little. The curve of a scope joins all arms that are equal except for `loss.balance`. Scopes are
compared at the best weight of each, and at one MaxVio for all: for each seed, nats are interpolated
linearly over the logarithm of MaxVio, at the middle of the range that all scopes cover.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moebench.plans import PRIMARY
from moebench.report.infer.arms import CONTROLS, Arm, Table
from moebench.report.infer.statistics import Estimate, mean_interval

FEWEST_WEIGHTS = 3
MAX_VIO = "load/max_vio_global"
WEIGHT = "loss.balance"


@dataclass(frozen=True)
class ScopeCurve:
    """One scope at several weights.

    Attributes:
        name: of the scope.
        arms: by weight, ascending.
        best: the arm of lowest mean nats.
        best_difference: of the best arm to the first scope's best, paired by seed; None for the
            first.
        matched: mean nats at the common MaxVio.
        matched_difference: to the first scope, paired by seed; None for the first.
        at: the common MaxVio, mean over seeds.
    """

    name: str
    arms: tuple[Arm, ...]
    best: Arm
    best_difference: Estimate | None
    matched: float | None
    matched_difference: Estimate | None
    at: float | None


def but_for_weight(science: Mapping[str, Any]) -> str:
    """A key that the arms of these settings share if they differ only in `loss.balance`."""
    rest = {key: value for key, value in science.items() if key not in (WEIGHT, "seed")}
    return repr(sorted(rest.items(), key=str))


def frontier(table: Table) -> list[ScopeCurve]:
    """The scopes of a table with three weights or more, the baseline's first.

    Empty if there is only one: there is nothing to compare it with.
    """
    groups: dict[str, list[Arm]] = {}
    for arm in table.arms:
        if WEIGHT in arm.science and not {*CONTROLS} & {*arm.science}:
            groups.setdefault(but_for_weight(arm.science), []).append(arm)
    scopes = [
        sorted(arms, key=lambda arm: arm.science[WEIGHT])
        for arms in groups.values()
        if len(arms) >= FEWEST_WEIGHTS
        and all(arm.per_seed.get(PRIMARY) and arm.per_seed.get(MAX_VIO) for arm in arms)
    ]
    if len(scopes) < 2:
        return []
    nats, at = _matched(scopes)
    bests = [min(arms, key=lambda arm: arm.metrics[PRIMARY].mean or math.inf) for arms in scopes]
    return [
        ScopeCurve(
            name=arms[0].name.partition(f" {WEIGHT}=")[0],
            arms=tuple(arms),
            best=best,
            best_difference=_difference(best.per_seed[PRIMARY], bests[0].per_seed[PRIMARY])
            if i
            else None,
            matched=_mean(nats[i]),
            matched_difference=_difference(nats[i], nats[0]) if i else None,
            at=_mean(at),
        )
        for i, (arms, best) in enumerate(zip(scopes, bests, strict=True))
    ]


def _matched(
    scopes: Sequence[Sequence[Arm]],
) -> tuple[list[dict[int, float]], dict[int, float]]:
    """Nats of each scope by seed, and by seed the MaxVio to which they belong."""
    nats: list[dict[int, float]] = [{} for _ in scopes]
    at: dict[int, float] = {}
    seeds = set.intersection(*({*arm.per_seed[PRIMARY]} for arms in scopes for arm in arms))
    for seed in sorted(seeds):
        lines = [
            sorted(
                (math.log(arm.per_seed[MAX_VIO][seed]), arm.per_seed[PRIMARY][seed])
                for arm in arms
                if arm.per_seed[MAX_VIO].get(seed, 0) > 0
            )
            for arms in scopes
        ]
        if any(len(points) < 2 for points in lines):
            continue
        low = max(points[0][0] for points in lines)
        high = min(points[-1][0] for points in lines)
        if low > high:
            continue
        middle = (low + high) / 2
        at[seed] = math.exp(middle)
        for of_scope, points in zip(nats, lines, strict=True):
            x, y = zip(*points, strict=True)
            of_scope[seed] = float(np.interp(middle, x, y))
    return nats, at


def _difference(mine: Mapping[int, float], base: Mapping[int, float]) -> Estimate | None:
    shared = sorted({*mine} & {*base})
    return mean_interval(np.array([mine[s] - base[s] for s in shared])) if shared else None


def _mean(values: Mapping[int, float]) -> float | None:
    return sum(values.values()) / len(values) if values else None

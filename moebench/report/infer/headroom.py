"""Headroom: what prescribed routers say routing could buy, and how far other arms are from it.

Values are validation nats a byte, paired by seed. T is the arm routed by the token, TD by domain
and token, S by the sequence, D by domain and sequence; H = T - TD.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moebench.report.infer.arms import BITS, CONTROLS, Arm, Table
from moebench.report.infer.statistics import Estimate, mean_interval

ROLES = {"hash": "T", "domain_token": "TD", "sequence_hash": "S", "domain": "D"}


@dataclass(frozen=True)
class Place:
    """An arm beside T and TD.

    Attributes:
        role: T, TD, S or D; "" for an arm that is not prescribed.
        nats: a byte, mean over seeds.
        to_token, to_domain_token: its difference to T and to TD; None for that arm itself, and
            where it shares no seed with it.
        behind: whether it is above T in every shared seed.
    """

    arm: Arm
    role: str
    nats: float
    to_token: Estimate | None
    to_domain_token: Estimate | None
    behind: bool = False

    @property
    def learned(self) -> bool:
        """Whether its router selects experts by what it has learned."""
        science = self.arm.science
        unlearned = science.get("router.random") or science.get("router.round_robin")
        return not (self.role or unlearned or is_dense(self.arm))


@dataclass(frozen=True)
class Headroom:
    """What a table says of headroom.

    Attributes:
        by_token: H = T - TD; None without both.
        by_sequence: S - D; None without both.
        places: of all arms, in the order of the table.
        equal_knowledge: whether all arms read the token that names the domain.
        seeds: the most that a prescribed arm has.
    """

    by_token: Estimate | None
    by_sequence: Estimate | None
    places: tuple[Place, ...]
    equal_knowledge: bool
    seeds: int


def is_dense(arm: Arm) -> bool:
    return arm.science.get("model.moe") is False


def role_of(arm: Arm) -> str:
    """T, TD, S or D for a prescribed arm without a balance loss; "" for any other."""
    science = arm.science
    plain = science.get("scope") == "none" and not {*CONTROLS, "router.hash_layers"} & {*science}
    return ROLES.get(str(science.get("router.map")), "") if plain else ""


def headroom(table: Table) -> Headroom | None:
    """What a table says of headroom; None without T or TD, or if several arms could be one."""
    arms = [arm for arm in table.arms if arm.per_seed.get(BITS)]
    roles = [role_of(arm) for arm in arms]
    columns = {role: number for number, role in enumerate(roles) if role}
    if not {"T", "TD"} & {*columns} or len(columns) < sum(map(bool, roles)):
        return None
    seeds = sorted({seed for arm in arms for seed in arm.per_seed[BITS]})
    values = math.log(2) * np.array(
        [[arm.per_seed[BITS].get(seed, math.nan) for arm in arms] for seed in seeds]
    )

    def less(one: int | None, other: int | None) -> Estimate | None:
        return None if one is None or other is None else _difference(values, one, other)

    places = []
    for number, (arm, role) in enumerate(zip(arms, roles, strict=True)):
        to_t, to_td = (less(number, columns.get(other)) for other in ("T", "TD"))
        above = values[:, number] - values[:, columns["T"]] if "T" in columns else np.array([])
        known = above[~np.isnan(above)]
        behind = role != "T" and len(known) > 0 and bool((known > 0).all())
        places.append(Place(arm, role, float(np.nanmean(values[:, number])), to_t, to_td, behind))
    return Headroom(
        less(columns.get("T"), columns.get("TD")),
        less(columns.get("S"), columns.get("D")),
        tuple(places),
        all(arm.science.get("data.domain_token") is True for arm in arms),
        max(len(arms[number].seeds) for number in columns.values()),
    )


def _difference(values: np.ndarray, one: int, other: int) -> Estimate | None:
    """The first arm less the second, by the paired t; None without a shared seed."""
    paired = values[:, one] - values[:, other]
    known = paired[~np.isnan(paired)]
    return None if one == other or not len(known) else mean_interval(known)


def by_role(places: Sequence[Place], role: str) -> Place | None:
    return next((place for place in places if place.role == role), None)

"""One optimizer step's gradients: every term a sum over own sequences divided by a global count.

A step is split into physical passes of any size. Where a balance group spans several of them, a
counting pass without gradient comes first, so that the frequency is the whole group's whatever the
split; the losses and gradients of the passes then simply add.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from moebench.balance import Micro, Routing, Scope, balance_loss, detached, join, z_loss
from moebench.model.transformer import MoETransformer


@dataclass(frozen=True)
class Objective:
    """mean cross-entropy + balance * (LBL of the scope + local * LBL of micro) + z * z-loss."""

    scope: Scope | None
    micro_bsz: int
    balance: float
    local: float
    z: float

    @property
    def terms(self) -> list[tuple[Scope, float]]:
        """The balance terms with their weights; none where nothing is balanced."""
        if self.scope is None or self.balance == 0:
            return []
        terms = [(self.scope, self.balance)]
        if self.local:
            terms.append((Micro(self.micro_bsz), self.balance * self.local))
        return terms


class Outcome(NamedTuple):
    """What a step computed, over all its passes; gradients lie in the parameters.

    Attributes:
        cross_entropy: mean over all target tokens, in nats.
        frequency: of each term, [layers, sequences, experts].
        routing: of the whole step, detached.
    """

    cross_entropy: Tensor
    frequency: list[Tensor]
    routing: Routing


def accumulate_gradients(
    model: MoETransformer,
    objective: Objective,
    tokens: Tensor,
    *,
    device_bsz: int,
    domain: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Outcome:
    """Add the gradient of one step's objective to the parameters.

    Args:
        tokens: [sequences, seq_len + 1] of the whole step; inputs and targets overlap.
        device_bsz: sequences in a physical pass; the result does not depend on it but for rounding.
        domain: [sequences], for a scope that asks for it.
        generator: keyed by (seed, step), for a scope that draws.
    """
    sequences, length = tokens.shape[0], tokens.shape[1] - 1
    total = sequences * length
    parts = tokens.split(device_bsz)
    terms = objective.terms

    def frequencies(routing: Routing, domain: Tensor | None) -> list[Tensor]:
        return [scope.frequency(routing, domain=domain, generator=generator) for scope, _ in terms]

    whole: list[Tensor] | None = None
    if len(parts) > 1 and any(device_bsz % scope.span(sequences) for scope, _ in terms):
        with torch.no_grad():
            counted = [model(part[:, :-1])[1] for part in parts]
        whole = frequencies(join(counted, along="sequences"), domain)

    cross_entropy = torch.zeros((), device=tokens.device)
    met: list[list[Tensor]] = []
    seen: list[Routing] = []
    for number, part in enumerate(parts):
        logits, routing = model(part[:, :-1])
        nats = F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum")
        nats = nats / total
        own = slice(number * device_bsz, number * device_bsz + len(part))
        if whole is None:
            frequency = frequencies(routing, None if domain is None else domain[own])
        else:
            frequency = [each[:, own] for each in whole]
        loss = nats + objective.z * z_loss(routing, total=total) if objective.z else nats
        for (_, weight), f in zip(terms, frequency, strict=True):
            loss = loss + weight * balance_loss(f, routing.prob_mass, total=total)
        loss.backward()
        cross_entropy = cross_entropy + nats.detach()
        met.append(frequency)
        seen.append(detached(routing))
    frequency = [torch.cat(each, 1) for each in zip(*met, strict=True)]
    return Outcome(cross_entropy, frequency, join(seen, along="sequences"))


def objective_terms(objective: Objective, outcome: Outcome) -> dict[str, float]:
    """What each term of the objective came to, weighted, in words; for a step that went wrong."""
    routing = outcome.routing
    found = {"cross-entropy": outcome.cross_entropy}
    for (scope, weight), f in zip(objective.terms, outcome.frequency, strict=True):
        found[f"balance loss over {scope}"] = weight * balance_loss(f, routing.prob_mass)
    found["z-loss"] = objective.z * z_loss(routing)
    return {term: value.item() for term, value in found.items()}

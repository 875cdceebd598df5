"""What the gradients of a balance loss say of it: as defined, or which known bug."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from moebench.conform.problem import (
    BASE,
    LAYERS,
    TOP_K,
    Deviations,
    Scenario,
    ScopeName,
    candidates,
    expected,
    inputs,
)

BOUND = 1e-4  # of a gradient's norm; losses may be computed in single precision
SAME = 1e-3  # of the factor between two gradients


@dataclass(frozen=True)
class Verdict:
    """Of one scenario.

    Attributes:
        scenario: its name.
        conforms: whether the gradient is the definition's.
        factor: of the gradient, relative to that of one pass; NaN where nothing fits.
        error: of the gradient against the definition's at the same factor, relative to its norm.
        said: what deviates, or what the function raised; empty if nothing.
    """

    scenario: str
    conforms: bool
    factor: float
    error: float
    said: str


@dataclass(frozen=True)
class Conformance:
    """Of a balance loss.

    Attributes:
        coefficient: of E * sum_i f_i P_i, a mean over layers, in one pass; NaN where nothing fits.
        verdicts: one of each scenario.
    """

    coefficient: float
    verdicts: list[Verdict]

    @property
    def conforms(self) -> bool:
        return all(verdict.conforms for verdict in self.verdicts)

    def convention(self) -> str:
        """What the coefficient is in terms of layers and experts per token."""
        named = {
            1: "a mean over layers, 1 at uniform routing",
            LAYERS: "a sum over layers",
            TOP_K: "top_k at uniform routing",
            LAYERS * TOP_K: "a sum over layers, top_k at uniform routing",
        }
        near = (text for value, text in named.items() if abs(self.coefficient / value - 1) < SAME)
        return next(near, "no known convention; a weight of its own?")


def judge(results: Mapping[Scenario, Tensor | str], scope: ScopeName) -> Conformance:
    """Compare gradients with the definition, and name what deviates.

    Args:
        results: [layers, width, experts] gradients after the trainer's own means over passes and
            ranks, or what was raised instead.
        scope: the one that the loss claims to have.
    """
    verdicts: dict[Scenario, Verdict] = {}
    coefficient, likely = torch.nan, None
    # several kinds of loss agree in a small step, so the largest tells first what f counts
    by_size = sorted(results, key=lambda each: (each != BASE, -each.ranks * each.passes))
    for scenario in by_size:
        result = results[scenario]
        if isinstance(result, str):
            verdicts[scenario] = Verdict(scenario.name, False, torch.nan, torch.nan, result)
            continue
        factor, error, found = _match(scenario, result.double(), scope, likely)
        if scenario == BASE:
            coefficient = factor
        elif likely is None and isinstance(found, Deviations):
            likely = found.counts
        verdicts[scenario] = _verdict(scenario, factor / coefficient, error, found, scope)
    return Conformance(coefficient, [verdicts[scenario] for scenario in results])


def _match(
    scenario: Scenario, gradient: Tensor, scope: ScopeName, likely: str | None
) -> tuple[float, float, Deviations | str]:
    """The factor of the kind that fits, the error of the definition, and that kind."""
    norm = gradient.norm()
    if norm < 1e-12:
        return torch.nan, torch.nan, "no gradient reaches the router: P or the loss is detached"
    if not norm.isfinite():
        return torch.nan, torch.nan, "the gradient is not finite"
    kinds = candidates(scenario, scope, likely)
    fits = [_fit(gradient, each) for each in expected(scenario, kinds)]
    found = next((i for i, (_, error) in enumerate(fits) if error < BOUND), None)
    if found is not None:
        return fits[found][0], fits[0][1], kinds[found]
    near = min(range(len(fits)), key=lambda i: fits[i][1])
    words = "; ".join(kinds[near].words(scope)) or "the definition"
    said = f"matches no known bug; nearest, to {fits[near][1]:.1%}: {words}"
    return torch.nan, fits[0][1], said


def _fit(gradient: Tensor, wanted: Tensor) -> tuple[float, float]:
    """The factor of `wanted` that is nearest to a gradient, and what is left, relatively."""
    factor = (gradient * wanted).sum() / wanted.square().sum()
    return factor.item(), ((gradient - factor * wanted).norm() / gradient.norm()).item()


def _verdict(
    scenario: Scenario, factor: float, error: float, found: Deviations | str, scope: ScopeName
) -> Verdict:
    said = [found] if isinstance(found, str) else found.words(scope)
    if abs(factor - 1) > SAME:
        said.append(_factor(scenario, factor))
    return Verdict(scenario.name, not said, factor, error, "; ".join(said))


def _factor(scenario: Scenario, factor: float) -> str:
    ranks, passes = scenario.ranks, scenario.passes
    masks = [inputs(scenario, 0, r, a)[1] for r in range(ranks) for a in range(passes)]
    real = sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
    both = [("the ranks", ranks), ("the passes", passes), ("ranks and passes", ranks * passes)]
    named = {real: "divided by all tokens, padding included"} if scenario.padding else {}
    for what, number in both if ranks > 1 < passes else [max(both[:2], key=lambda each: each[1])]:
        named |= {number: f"multiplied by {what}", 1 / number: f"divided by {what}"}
    if scenario.recompute:
        named[2] = "counted twice, as it is recomputed"
    near = (text for value, text in named.items() if abs(factor / value - 1) < SAME)
    return f"{factor:.4g} times the gradient of one pass ({next(near, 'no known factor')})"

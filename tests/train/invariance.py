"""How far a step's gradients depend on its split, order and ranks: by rounding alone.

For every scope and estimator, losses and gradients are compared with those of one pass on one rank:
over splits into passes, over orders of the passes, and over ranks (real processes, gloo).
`python -m tests.train.invariance` prints a table of the worst relative errors.
"""

import itertools
from collections.abc import Iterable, Iterator
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from moebench.balance import Domain, Estimator, Global, Micro, Scope, Sequence, Shuffled, Term
from moebench.balance.state import BalanceState
from moebench.model.transformer import MoETransformer, initialize
from moebench.train.gradients import accumulate_gradients
from moebench.train.ranks import Ranks, joined
from moebench.train.step import Objective, Step
from tests.processes import on_ranks

SEQUENCES, LENGTH, MICRO = 8, 6, 2
STEPS = 3  # if there is a state
SCOPES: dict[str, Scope] = {
    "sequence": Sequence(),
    "micro": Micro(MICRO),
    "global": Global(),
    "global-4": Global(4),
    "shuffled": Shuffled(MICRO),
    "shuffled-4": Shuffled(MICRO, 4),
    "domain": Domain(4),
}
ESTIMATORS: dict[str, Estimator] = {
    "exact": Estimator(),
    "buffer of 2": Estimator("buffer", pass_bsz=2),
    "buffer of 4": Estimator("buffer", pass_bsz=4),
    "stale": Estimator("stale"),
    "ema": Estimator("ema", decay=0.5),
    "window of 3": Estimator(window_steps=3),
}
BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-5}


class Result(NamedTuple):
    """The losses and the gradient of every parameter, of the last of a few steps."""

    losses: Tensor
    gradients: dict[str, Tensor]


def objective(scope: str, estimator: str) -> Objective:
    """An objective in which the balance terms dominate."""
    terms = (Term(SCOPES[scope], 10.0), Term(Micro(MICRO), 0.1))
    return Objective(terms, micro_bsz=MICRO, z=0.1, estimator=ESTIMATORS[estimator])


@cache
def model_of(dtype: torch.dtype, top_k: int = 2) -> MoETransformer:
    """A small model with unbalanced routers."""
    model = MoETransformer(
        vocab_size=16,
        d_model=16,
        num_layers=2,
        num_heads=2,
        num_experts=4,
        top_k=top_k,
        expert_dim=8,
        compute=dtype,
    )
    initialize(model, 0)
    with torch.no_grad():
        for layer in range(2):
            model.get_parameter(f"blocks.{layer}.router.weight").mul_(20)
    return model


def steps(device_bsz: int, ranks: Ranks, order: list[int] | None, several: bool) -> Iterator[Step]:
    """Steps in which each micro-batch has a range of tokens of its own, like a domain."""
    generator = torch.Generator().manual_seed(0)
    for number in range(1, STEPS + 1 if several else 2):
        low = torch.arange(4).roll(number).repeat_interleave(MICRO)[:, None] * 4
        drawn = torch.randint(0, 4, (SEQUENCES, LENGTH + 1), generator=generator)
        yield Step(
            low + drawn,
            device_bsz,
            number=number,
            domain=torch.arange(4).repeat_interleave(MICRO).roll(3 * number),
            seed=7 + number,
            ranks=ranks,
            order=order,
        )


def gradients(
    what: Objective,
    device_bsz: int = SEQUENCES,
    dtype: torch.dtype = torch.float64,
    ranks: Ranks | None = None,
    order: list[int] | None = None,
) -> Result:
    """Losses and gradients of the last of a few steps; of one step if there is no state."""
    model = model_of(dtype)
    states: list[BalanceState | None] | None = None
    losses = torch.zeros(())
    for step in steps(device_bsz, ranks or Ranks(), order, what.estimator.carries):
        model.zero_grad()
        outcome = accumulate_gradients(model, what, step, states)
        states = outcome.states
        losses = torch.stack([outcome.cross_entropy, *(value for _, value in outcome.balance)])
    found = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return Result(losses, {name: each.clone() for name, each in found.items()})


@cache
def reference(scope: str, estimator: str, dtype: torch.dtype) -> Result:
    return gradients(objective(scope, estimator), dtype=dtype)


def error(result: Result, expected: Result) -> float:
    """The worst relative error of a loss and of a parameter's gradient."""
    of_losses = ((result.losses - expected.losses).abs() / expected.losses.abs()).max()
    of_gradients = [
        (result.gradients[name] - each).norm() / each.norm()
        for name, each in expected.gradients.items()
    ]
    return float(torch.stack([of_losses, *of_gradients]).max())


def ways(ranks: Ranks) -> Iterator[tuple[int, list[int] | None]]:
    """Splits and orders to compare with one pass on one rank.

    Several passes come in another order than the data's (None); two come in that order as well.
    Several ranks take their part of a step as one pass, and one sequence at a time.
    """
    own = SEQUENCES // ranks.size
    if ranks.size > 1:
        yield own, None
    for device_bsz in (4, 2, 1) if ranks.size == 1 else (1,):
        passes = own // device_bsz
        if passes == 2:
            yield device_bsz, None
        mixed = torch.randperm(passes, generator=torch.Generator().manual_seed(passes)).tolist()
        yield device_bsz, mixed if passes > 4 else list(range(passes))[::-1]


def worst(scope: str, estimator: str, dtype: torch.dtype, ranks: Ranks) -> dict[str, float]:
    """The worst error by what is varied: the `split` alone, or the `order` too."""
    found: dict[str, float] = {}
    for device_bsz, order in ways(ranks):
        varied = "split" if order is None else "order"
        one = gradients(objective(scope, estimator), device_bsz, dtype, ranks, order)
        off = error(one, reference(scope, estimator, dtype))
        found[varied] = max(found.get(varied, 0.0), off)
    return found


Table = dict[tuple[str, str, str], float]  # scope, estimator, what was varied -> worst error


def measure(
    dtype: torch.dtype, ranks: Ranks, estimators: Iterable[str] = tuple(ESTIMATORS)
) -> Table:
    return {
        (scope, estimator, varied): off
        for scope, estimator in itertools.product(SCOPES, estimators)
        for varied, off in worst(scope, estimator, dtype, ranks).items()
    }


def measure_on_ranks(
    dtype: torch.dtype, size: int, estimators: Iterable[str] = tuple(ESTIMATORS)
) -> Table:
    """The worst errors over `size` processes."""
    tables: list[Table] = on_ranks(_as_rank, size, dtype, tuple(estimators))
    return {key: max(table[key] for table in tables) for key in tables[0]}


def _as_rank(dtype: torch.dtype, estimators: tuple[str, ...]) -> Table:
    torch.set_num_threads(1)
    with joined("cpu") as ranks:
        return measure(dtype, ranks, estimators)


def _print_table() -> None:
    for dtype, bound in BOUNDS.items():
        alone = measure(dtype, Ranks())
        ranked = {size: measure_on_ranks(dtype, size) for size in (2, 4)}
        print(f"\n{dtype}, bound {bound:g}".replace("torch.", ""))
        print(
            f"{'scope':12}{'estimator':14}{'split':>10}{'order':>10}{'2 ranks':>10}{'4 ranks':>10}"
        )
        for scope, estimator in itertools.product(SCOPES, ESTIMATORS):
            cells = [alone[scope, estimator, "split"], alone[scope, estimator, "order"]]
            cells += [
                max(table[scope, estimator, each] for each in ("split", "order"))
                for table in ranked.values()
            ]
            print(f"{scope:12}{estimator:14}" + "".join(f"{each:10.1e}" for each in cells))


if __name__ == "__main__":
    torch.set_num_threads(1)
    _print_table()

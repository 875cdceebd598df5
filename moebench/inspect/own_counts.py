"""What counts logged by any trainer say of scope, load, domains and cost."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from moebench.catalogue import random_values
from moebench.errors import DataError
from moebench.inspect import Inspection
from moebench.inspect.counts_file import Counts, Ints, read_costs, read_counts
from moebench.metrics import expert_parallel, load
from moebench.metrics.dispersion import Dispersion, dispersion
from moebench.metrics.specialization import domain_specialization

PREDICTED = ("ep/slowdown_greedy", "ep/slowdown_redundant")  # placed by earlier steps' loads


class Cost(NamedTuple):
    """Time of the expert layers of a step, by a table of tokens a rank and milliseconds.

    Attributes:
        ranks: that micro-batches are dispatched over, with experts placed round-robin.
        ms: of the slowest ranks, summed over layers and dispatches; mean over steps.
        even_ms: the same if loads were even.
    """

    ranks: int
    ms: float
    even_ms: float


@dataclass(frozen=True)
class Counted:
    """A file of counts, as `moebench inspect --counts` shows it.

    Attributes:
        inspection: loads, domains and metrics; a domain's counts are those of its rows.
        dispersion: of the micro-batches of each step.
        within_domains: the same, of those of one domain within a step; None without two of them.
        ranks: of `ep/slowdown`; None if the numbers of experts and micro-batches are odd.
        cost: None without a table of costs.
    """

    inspection: Inspection
    dispersion: Dispersion
    within_domains: Dispersion | None
    ranks: int | None
    cost: Cost | None

    def to_dict(self) -> dict[str, Any]:
        within = self.within_domains
        return {
            **self.inspection.to_dict(),
            "dispersion": self.dispersion._asdict(),
            "dispersion_within_domains": within._asdict() if within else None,
            "ranks": self.ranks,
            "cost": self.cost._asdict() if self.cost else None,
        }


def inspect_counts(path: Path, top_k: int, cost: Path | None = None) -> Counted:
    """Read a file of counts and measure it.

    Args:
        top_k: experts of a token.
        cost: a CSV file of tokens a rank and milliseconds.

    Raises:
        DataError: if a file cannot be used, or no step has two micro-batches that can differ.
    """
    table = read_costs(cost) if cost else None
    made = read_counts(path, top_k)
    counts, step, domain = made.by_micro_batch()
    found = dispersion(counts, step, top_k)
    if found is None:
        raise DataError(
            f"--counts={path}: no step has two micro-batches that can differ; write the counts of "
            "each micro-batch, not of whole steps"
        )
    named, within = len(made.domains) > 1, None
    if named:
        single = domain >= 0
        pool = step[single] * len(made.domains) + domain[single]
        within = dispersion(counts[single], pool, top_k)
    ranks, parallel = _parallel(counts, step)
    tokens = round(float(counts.sum(2).mean()) / top_k)
    metrics, random = _loads(counts, step, top_k, tokens)
    if named:
        metrics["specialization/domain"] = domain_specialization(
            torch.from_numpy(made.counts).transpose(0, 1),
            torch.from_numpy(made.domain),
            len(made.domains),
        )
    experts = counts.shape[2]
    if ranks:
        random["ep/slowdown"] = expert_parallel.random_slowdown(experts, top_k, tokens, ranks)
    inspection = Inspection(
        name=str(path),
        about=_about(made, counts, step, top_k, tokens, ranks),
        domains=made.domains if named else ["all"],
        counts=np.stack(
            [made.counts[made.domain == d].sum(0) for d in range(len(made.domains))], 1
        ),
        top_k=top_k,
        metrics={**metrics, **parallel},
        random=random,
        layers=made.layers,
    )
    priced = _priced(counts, step, ranks, table, f"--cost={cost}") if table else None
    return Counted(inspection, found, within, ranks, priced)


def _about(
    made: Counts, counts: Ints, step: Ints, top_k: int, tokens: int, ranks: int | None
) -> list[str]:
    number, layers, experts = counts.shape
    lines = [
        f"{len(np.unique(step)):,} steps, {number:,} micro-batches of about {tokens:,} tokens, "
        f"{layers} layers, {experts} experts, top-{top_k}"
    ]
    lines.append("max_vio_global, dead_experts_global: of the whole file")
    if ranks:
        lines.append(f"ep/: {ranks} virtual ranks, a micro-batch each")
    if len(made.domains) > 1:
        lines.append("domain: chance is by permuted labels of the file's rows")
    return lines


def _loads(
    counts: Ints, step: Ints, top_k: int, tokens: int
) -> tuple[dict[str, float], dict[str, float]]:
    """`load/*` of micro-batches, steps and the whole file, and their values by chance."""
    names, of_step = np.unique(step, return_inverse=True)
    by_step = np.zeros((len(names), *counts.shape[1:]), np.int64)
    np.add.at(by_step, of_step, counts)
    micro, batch, whole = map(torch.from_numpy, (counts, by_step, counts.sum(0)))
    metrics = {
        "load/max_vio_micro": load.max_violation(micro),
        "load/max_vio_batch": load.max_violation(batch),
        "load/max_vio_global": load.max_violation(whole),
        "load/dead_experts_global": load.dead_experts(whole),
        "load/drop_rate": load.drop_rate(micro, load.CAPACITY_FACTOR),
    }
    experts, number = counts.shape[2], len(counts)
    sizes = {"micro": 1, "batch": number / len(names), "global": number}
    loads = {
        name: load.random_load(experts, top_k, round(tokens * size)) for name, size in sizes.items()
    }
    return (
        {name: float(value.mean()) for name, value in metrics.items()},
        random_values({"random_load": loads}, experts, top_k),
    )


def _parallel(counts: Ints, step: Ints) -> tuple[int | None, dict[str, float]]:
    """The ranks of `ep/*`, and its metrics: means over steps."""
    sizes = np.unique(step, return_counts=True)[1].tolist()
    numbers = expert_parallel.rank_numbers(counts.shape[2], int(np.gcd.reduce(sizes)))
    ranks = expert_parallel.main_ranks(numbers)
    if ranks is None:
        return None, {}
    rows: dict[str, list[float]] = {}
    seen = np.zeros(counts.shape[1:])
    for name in np.unique(step):
        inside = counts[step == name].swapaxes(0, 1)  # [layers, micro-batches, experts]
        for key, place in (("ep/slowdown", "round_robin"), *((k, k[12:]) for k in PREDICTED)):
            if place == "round_robin" or seen.any():
                placement = expert_parallel.PLACEMENTS[place](seen, ranks)
                value = expert_parallel.slowdown(inside, placement)
                rows.setdefault(key, []).append(value)
        seen += inside.sum(1)
    return ranks, {key: float(np.mean(values)) for key, values in rows.items()}


def _priced(
    counts: Ints,
    step: Ints,
    ranks: int | None,
    table: tuple[list[float], list[float]],
    where: str,
) -> Cost:
    if ranks is None:
        raise DataError(
            f"{where}: needs virtual ranks, and no power of two divides both the experts and the "
            "micro-batches of every step"
        )
    placement = expert_parallel.round_robin(counts.sum(0), ranks)
    steps, inside = len(np.unique(step)), counts.swapaxes(0, 1)  # in the order of the steps
    together = inside.reshape(inside.shape[0], -1, ranks, inside.shape[2]).sum(2)
    ranked = together @ placement  # [layers, dispatches, ranks]
    most = float(ranked.max())
    if most > table[0][-1]:
        raise DataError(
            f"{where}: ends at {table[0][-1]:g} tokens, and a rank gets up to {most:g}; measure "
            "that many"
        )
    ms, even = np.interp(ranked, *table).max(-1), np.interp(ranked.mean(-1), *table)
    return Cost(ranks, float(ms.sum()) / steps, float(even.sum()) / steps)

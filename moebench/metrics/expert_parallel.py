"""The cost of imbalance under expert parallelism: the slowest rank's load over the mean.

R virtual ranks hold the experts of every layer and dispatch R micro-batches together, one per rank.
A layer lasts as long as its most loaded rank, so for a step

    slowdown = sum over layers and dispatches of max_r load_r / the same sum of mean_r load_r

which is 1 for an even load and R if one rank has all tokens. It covers the time of the experts, not
that of attention and communication. A placement is the share of each expert's tokens that each rank
gets, [layers, experts, ranks], with rows that sum to 1. It depends only on loads of earlier steps.
"""

from collections.abc import Callable
from heapq import heappop, heappush

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

MOST_RANKS = 64
MAIN_RANKS = 8  # of the metrics without `/R`, or the most possible below


def rank_numbers(num_experts: int, micro_batches: int) -> list[int]:
    """The powers of two, up to 64, that divide both the experts and a step's micro-batches."""
    powers = (1 << bits for bits in range(1, MOST_RANKS.bit_length()))
    return [n for n in powers if num_experts % n == 0 and micro_batches % n == 0]


def main_ranks(numbers: list[int]) -> int | None:
    """The number of ranks of the metrics without `/R`; None if there is none."""
    return max((n for n in numbers if n <= MAIN_RANKS), default=None)


def round_robin(load: npt.ArrayLike, ranks: int) -> Floats:
    """Expert e is on rank e mod R, whatever the load."""
    layers, experts = np.shape(load)
    return np.tile(np.eye(ranks), (layers, experts // ranks, 1))


def greedy(load: npt.ArrayLike, ranks: int) -> Floats:
    """E / R experts per rank; the most loaded first, each goes to the least loaded rank."""
    load = np.asarray(load, np.float64)
    return _packed(load, np.ones(load.shape, np.int64), ranks)


def redundant(load: npt.ArrayLike, ranks: int) -> Floats:
    """As greedy, but each rank has room for one more: R copies go to the most loaded experts.

    The next copy is of the expert with the largest load a copy, whose tokens its copies share
    evenly (as in EPLB, without its hierarchy of nodes).
    """
    load = np.asarray(load, np.float64)
    copies = np.ones(load.shape, np.int64)
    layer = np.arange(len(load))
    for _ in range(ranks):
        # an expert has no second copy on a rank, so none has more copies than there are ranks
        per_copy = np.where(copies < ranks, load / copies, -1.0)
        copies[layer, per_copy.argmax(1)] += 1
    return _packed(load, copies, ranks)


PLACEMENTS: dict[str, Callable[[npt.ArrayLike, int], Floats]] = {
    "round_robin": round_robin,
    "greedy": greedy,
    "redundant": redundant,
}


def slowdown(counts: npt.ArrayLike, placement: Floats) -> float:
    """The slowest rank's load over the mean, summed over layers and dispatches.

    Args:
        counts: [layers, micro_batches, experts] assignments; R consecutive micro-batches are
            dispatched together.
        placement: [layers, experts, ranks].
    """
    load = _dispatched(counts, placement.shape[2]).sum(2) @ placement
    return float(load.max(-1).sum() / load.mean(-1).sum())


def sent_elsewhere(counts: npt.ArrayLike, placement: Floats) -> float:
    """Assignments that leave their rank; micro-batch m lies on rank m mod R.

    Args: as for `slowdown`. Of an expert with several copies, each takes its share of all tokens.
    """
    ranks = placement.shape[2]
    counts = _dispatched(counts, ranks)
    stay = np.einsum("lgre,ler->", counts, placement)
    return float(counts.sum() - stay)


def cost(counts: npt.ArrayLike, load: npt.ArrayLike, assignment_bytes: int) -> dict[str, float]:
    """The `ep/*` metrics of a step, for each number of ranks that it can be divided among.

    `ep/slowdown` (round-robin), `ep/slowdown_greedy` and `ep/slowdown_redundant` are for 8 ranks,
    or for the most possible below; with `/R`, for R ranks. `ep/all_to_all_bytes` is
    what all ranks of the former send to others in the step, under round-robin. Empty where no power
    of two divides both the experts and the micro-batches.

    Args:
        counts: [layers, micro_batches, experts] assignments of the step.
        load: [layers, experts] of earlier steps, 0 before the first.
        assignment_bytes: of one assignment, there and back, in all passes of the step.
    """
    counts = np.asarray(counts, np.float64)
    numbers = rank_numbers(counts.shape[2], counts.shape[1])
    main = main_ranks(numbers)
    if main is None:
        return {}
    metrics: dict[str, float] = {}
    for name, place in PLACEMENTS.items():
        key = "ep/slowdown" if name == "round_robin" else f"ep/slowdown_{name}"
        for ranks in numbers:
            metrics[f"{key}/{ranks}"] = slowdown(counts, place(load, ranks))
        metrics[key] = metrics[f"{key}/{main}"]
    away = sent_elsewhere(counts, round_robin(load, main))
    return {**metrics, "ep/all_to_all_bytes": away * assignment_bytes}


def random_slowdown(num_experts: int, top_k: int, tokens: int, ranks: int) -> float:
    """Mean slowdown if every token chose its experts at random, by 2,000 seeded draws.

    Args:
        tokens: in a micro-batch.
    """
    experts = num_experts // ranks  # of a rank
    draws = np.random.default_rng(0).multinomial(
        ranks * tokens * top_k, np.full(ranks, 1 / ranks), size=2000
    )
    # variance of a choice without replacement over that with it
    spread = ((num_experts - top_k) / (num_experts - 1)) ** 0.5
    assert experts * ranks == num_experts
    return float(1 + (draws.max(1) / draws.mean(1) - 1).mean() * spread)


def _dispatched(counts: npt.ArrayLike, ranks: int) -> Floats:
    """[layers, dispatches, ranks, experts]."""
    counts = np.asarray(counts, np.float64)
    layers, micro_batches, experts = counts.shape
    return counts.reshape(layers, micro_batches // ranks, ranks, experts)


def _packed(load: Floats, copies: npt.NDArray[np.int64], ranks: int) -> Floats:
    """Copies of experts on ranks of equal room, the largest first, each where least lies so far.

    Args:
        load: [layers, experts].
        copies: [layers, experts]; each layer's sum is a multiple of `ranks`.
    """
    layers, experts = load.shape
    held = np.zeros((layers, experts, ranks))
    for layer in range(layers):
        per_copy = (load[layer] / copies[layer]).tolist()
        slots = [e for e in range(experts) for _ in range(copies[layer, e])]
        room = [len(slots) // ranks] * ranks
        ready = [(0.0, rank) for rank in range(ranks)]  # a heap of those with room
        for expert in sorted(slots, key=lambda e: -per_copy[e]):
            passed = []  # ranks that have the expert already are the last resort
            while len(ready) > 1 and held[layer, expert, ready[0][1]]:
                passed.append(heappop(ready))
            used, rank = heappop(ready)
            held[layer, expert, rank] += 1
            room[rank] -= 1
            if room[rank]:
                passed.append((used + per_copy[expert], rank))
            for one in passed:
                heappush(ready, one)
    return held / copies[..., None]

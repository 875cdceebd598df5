"""Replay cost: what a router's knowledge of the domain is worth to the loss.

A text is passed twice with experts of other places: each token takes those that the same token took
at a random place, once in another domain and once in another sequence of its own domain. All else
(the weights of the gate, attention) follows from them. The second pass costs what a router loses by
any exchange; the difference is due to the domain alone. Domain bits cannot tell this: a loss that
evens each domain's load drives them to 0 by itself.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from moebench.data.draws import uniform

Ints = npt.NDArray[np.int64]
Forward = Callable[[Tensor], Tensor]  # experts of each token -> nats [sequences, targets]


def donors(token: Ints, domain: Ints) -> tuple[Ints, Ints]:
    """Where each token takes its experts from: a place in another domain, and one in its own.

    Both are [sequences, tokens]. Places are counted over all sequences. They are drawn evenly from
    those that hold the same token, and are the same in every evaluation. A token that lacks either
    keeps its own place in both, and then adds nothing to the difference.

    Args:
        token: [sequences, tokens] that are routed.
        domain: [sequences].
    """
    sequences, tokens = token.shape
    whose = np.repeat(np.arange(sequences), tokens)
    labels = [token.ravel(), np.repeat(domain, tokens), whose]
    order = np.lexsort(labels[::-1])  # by token, then domain, then sequence
    ordered = [each[order] for each in labels]
    (of_token, of_domain, of_sequence) = [_runs(ordered[: n + 1]) for n in range(3)]
    drawn = uniform(2 * len(order), "replay").reshape(2, -1)
    other, there = _outside(of_token, of_domain, drawn[0])
    own, here = _outside(of_domain, of_sequence, drawn[1])
    place = np.arange(len(order))
    found = []
    for chosen in (other, own):
        at = np.empty_like(order)
        at[order] = order[np.where(there & here, chosen, place)]
        found.append(at.reshape(sequences, tokens))
    return found[0], found[1]


def _runs(columns: list[Ints]) -> tuple[Ints, Ints]:
    """[places] first and end of the run of equal rows that each place is in."""
    changes = np.any([np.diff(column) != 0 for column in columns], axis=0)
    begin = np.concatenate([[0], np.flatnonzero(changes) + 1])
    size = np.diff(np.append(begin, len(columns[0])))
    return np.repeat(begin, size), np.repeat(begin + size, size)


def _outside(
    whole: tuple[Ints, Ints], part: tuple[Ints, Ints], drawn: npt.NDArray[np.float64]
) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """[places] a draw from the run `whole` without `part`, which lies in it; and if any is."""
    room = (whole[1] - whole[0]) - (part[1] - part[0])
    chosen = whole[0] + np.floor(drawn * room).astype(np.int64)
    return np.where(chosen >= part[0], chosen + part[1] - part[0], chosen), room > 0


def replay_cost(
    index: Int[Tensor, "layers sequences tokens slots"],
    token: Int[Tensor, "sequences tokens"],
    domain: Int[Tensor, " sequences"],
    forward: Forward,
) -> float | None:
    """Nats a target token with experts of another domain, minus those with experts of its own.

    The mean over domains of the mean over their target tokens, as of `valid/nats`. It takes two
    forward passes over the text. None where it says nothing: tokens with fewer experts than others,
    or none that occurs in two domains and twice in one.

    Args:
        index: the experts that the router selected.
        token: the inputs that were routed.
        forward: the nats of each target token, with the experts it is given.
    """
    text, label = token.cpu().numpy(), domain.cpu().numpy()
    places = donors(text, label)
    if (places[0] == np.arange(text.size).reshape(text.shape)).all() or bool((index < 0).any()):
        return None
    flat = index.flatten(1, 2)
    nats: list[Float[Tensor, "sequences targets"]] = [
        forward(flat[:, torch.from_numpy(each).to(flat.device).flatten()].view_as(index))
        for each in places
    ]
    by_sequence = (nats[0].double() - nats[1].double()).mean(1).cpu().numpy()
    return float(np.mean([by_sequence[label == each].mean() for each in np.unique(label)]))

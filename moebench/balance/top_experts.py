"""The experts of the highest scores, as `torch.topk` finds them, in less time on a CPU.

`topk` sorts one row after the other. Here all rows go through one sorting network: experts are the
first axis, and each comparison is a `maximum` and a `minimum` of whole slices.

A key is a score whose lowest bits say which expert it is of. Rows in which those bits may decide go
to `topk`, and so do rows with equal scores or NaN: the indices and their order are always `topk`'s.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moebench.balance.devices import can_look

FEWEST = 2**16  # scores; with fewer, the calls take longer than `topk`
CACHED = 2**18  # scores sorted at a time; 1 MiB


def top_experts(scores: Float[Tensor, "*rows experts"], top_k: int) -> Int[Tensor, "*rows top_k"]:
    """`scores.topk(top_k, dim=-1).indices`, by a network where that takes less time."""
    scores = scores.detach()
    if not _pays(scores):
        return scores.topk(top_k, dim=-1).indices
    experts = scores.shape[-1]
    rows = scores.reshape(-1, experts)
    parts = rows.split(max(1, CACHED // experts))
    room = rows.new_empty(2, _power_of_two(experts) * len(parts[0]))
    found = torch.cat([_by_network(part, top_k, room) for part in parts])
    return found.view(*scores.shape[:-1], top_k)


def _pays(scores: Tensor) -> bool:
    if not can_look(scores) or scores.dtype != torch.float32 or scores.numel() < FEWEST:
        return False
    return torch.get_num_threads() == 1  # with more, each of many calls waits for all of them


def _power_of_two(number: int) -> int:
    """The lowest that is not below the number."""
    return 1 << (number - 1).bit_length()


def _by_network(scores: Tensor, top_k: int, room: Tensor) -> Tensor:
    """[rows, top_k] of scores [rows, experts]; the room [2, n] holds the keys of all rows twice."""
    rows, experts = scores.shape
    width = _power_of_two(experts)
    low = width - 1  # the bits of a key that say which expert it is of
    keys, spare = room[:, : width * rows].view(2, width, rows)
    keys[:experts] = scores.t()
    keys[experts:] = -torch.inf
    keys.clamp_(min=torch.finfo(keys.dtype).min)  # -inf with other low bits would be NaN
    bits = keys[:experts].view(torch.int32)
    bits &= ~low
    bits |= torch.arange(experts, dtype=torch.int32)[:, None]
    best = torch.cat(_highest(keys, spare, top_k))[: top_k + 1].view(torch.int32)
    index = (best[:top_k] & low).t().to(torch.int64, memory_format=torch.contiguous_format)
    value = (best & ~low).view(torch.float32)
    clear = (value[:-1] > value[1:]).all(0)  # False beside NaN
    doubt = clear.logical_not_().nonzero().squeeze(1)
    if len(doubt):
        index[doubt] = scores[doubt].topk(top_k, dim=-1).indices
    return index


def _highest(keys: Tensor, spare: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The highest keys of each column, falling, `number` or more, and the next: a bitonic sort.

    Args:
        keys: [width, columns], overwritten; the width is a power of two.
        spare: likewise; each step writes into the one of the two that the last step read.
    """
    columns = keys.shape[1]
    runs, length = len(keys), 1
    following = keys.new_full((1, columns), -torch.inf)
    keys, spare = keys.view(-1), spare.view(-1)
    while runs > 1:
        # of one run and another reversed, the higher of each pair are the highest of both
        ahead, behind = keys[: runs * length * columns].view(2, -1, length, columns)
        runs, distance = runs // 2, length // 2
        apart = (length if length < number else runs * length) * columns
        _exchange(ahead, behind.flip(1), spare, apart)
        keys, spare = spare, keys
        if length < number:
            length *= 2
        else:
            dropped = keys[apart : 2 * apart].view(-1, columns)
            following = following.maximum(dropped.amax(0))
        while distance:  # each half of a pair of halves now falls and rises
            apart = distance * columns
            pairs = keys[: runs * length * columns].view(-1, 2, apart)
            _exchange(pairs[:, 0], pairs[:, 1], spare, apart)
            keys, spare = spare, keys
            distance //= 2
    return keys[: length * columns].view(length, columns), following


def _exchange(some: Tensor, others: Tensor, out: Tensor, apart: int) -> None:
    """Writes the higher of each pair of keys to `out`, and so many keys later the lower."""
    pairs = out[: 2 * some.numel()].view(-1, 2, apart)
    torch.maximum(some.view(-1, apart), others.view(-1, apart), out=pairs[:, 0])
    torch.minimum(some.view(-1, apart), others.view(-1, apart), out=pairs[:, 1])

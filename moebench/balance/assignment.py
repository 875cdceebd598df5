"""Balanced assignments: which expert gets which token, chosen for a whole group of tokens at once.

Each function takes scores [groups, tokens, experts] and returns a mask of that shape, true where
the expert gets the token. The caller chooses the groups: whole sequences, never a physical pass, so
that no mask depends on how a step is split. Masks carry no gradient: the router weights the experts
of a token.

With each of them, the experts of a token depend on later tokens, so none can generate text.
Evaluation uses `top_k_mask` for each token instead.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from moebench.balance.method import Method
from moebench.errors import ConfigError

CHECKED_EVERY = 8  # iterations of Sinkhorn on a GPU, before the host asks whether all are done
BASE_LIMIT = 2**26  # entries of a group's cost matrix in BASE: 512 MiB in the solver's fp64


@torch.no_grad()
def top_k_mask(scores: Float[Tensor, "*rows experts"], top_k: int) -> Bool[Tensor, "*rows experts"]:
    """Each token takes its `top_k` experts of the highest score, of equal ones the first."""
    return _highest(scores, top_k, -1)


@torch.no_grad()
def expert_choice(
    scores: Float[Tensor, "groups tokens experts"], top_k: int, *, capacity_factor: float = 1.0
) -> Bool[Tensor, "groups tokens experts"]:
    """Expert Choice: each expert takes the c tokens of the group that it scores highest.

        c = ceil(capacity_factor * tokens * top_k / experts)                    (arXiv 2202.09368)

    The load is even by construction. A token gets between none and all of the experts, and `top_k`
    on average at a factor of 1. The factor of the source is `capacity_factor * top_k`, 2 by
    default. The experts of a token depend on later tokens, see `leaked_bits`.

    Args:
        scores: the router's distribution over the experts.

    Raises:
        ConfigError: where an expert would take no token, or more than there are.
    """
    tokens, experts = scores.shape[-2:]
    taken = capacity(capacity_factor, tokens, top_k, experts)
    if not 1 <= taken <= tokens:
        raise ConfigError(
            f"a capacity of {taken} tokens an expert: must be between 1 and the {tokens} of a "
            "group; change the capacity factor"
        )
    # tokens that are preceded by the same text have scores that differ by rounding at most
    return _highest(scores.float(), taken, -2)


def capacity(factor: float, tokens: int, top_k: int, experts: int) -> int:
    """Assignments that an expert takes of a group: ceil(factor * tokens * top_k / experts)."""
    # rounded first, since 1.1 * 160 is a little more than 176 in floating point
    return math.ceil(round(factor * tokens * top_k / experts, 9))


def leaked_bits(layers: int, experts: int, top_k: int) -> float:
    """A lower bound on the bits about later tokens that Expert Choice can carry to each token.

        layers * top_k * log2((1 - R) / R),  R = top_k / experts                (arXiv 2408.15664)

    More than 50 bits for 9 layers of 16 experts with 2 a token, where the next token has a few.
    """
    if not 0 < top_k < experts:
        raise ConfigError(f"top_k={top_k}: must be between 1 and {experts - 1}, below experts")
    share = top_k / experts
    return layers * top_k * math.log2((1 - share) / share)


@torch.no_grad()
def base_assignment(
    scores: Float[Tensor, "groups tokens experts"], top_k: int
) -> Bool[Tensor, "groups tokens experts"]:
    """BASE: the even assignment of the largest total score, `top_k` times over.

        max sum_t s_{t, a(t)},  no expert in more than ceil(tokens / experts) of a(1) .. a(tokens)
                                                                                (arXiv 2103.16716)

    The source has `top_k` = 1, and approximates by auction (fairseq `modules/base_layer.py`) what
    is solved exactly here, by scipy's `linear_sum_assignment` on the CPU, in time that grows with
    the cube of the group. For `top_k` above 1, each further round is the best even assignment
    without the pairs of the rounds before; over r rounds no expert has more than
    ceil(r * tokens / experts) tokens.

    Raises:
        ConfigError: for a group whose cost matrix would be too large for memory, and for scores
            that are not finite.
    """
    groups, tokens, experts = scores.shape
    entries = tokens * experts * -(-tokens // experts)
    if entries > BASE_LIMIT:
        raise ConfigError(
            f"a group of {tokens} tokens: BASE needs a matrix of {entries} entries, and at most "
            f"{BASE_LIMIT} are allowed; make the groups smaller"
        )
    if not scores.isfinite().all():
        raise ConfigError("scores that are not finite: BASE needs numbers to assign by")
    cost = scores.double().cpu()
    mask = torch.zeros(cost.shape, dtype=torch.bool)
    for group in range(groups):
        for number in range(1, top_k + 1):
            room = -(-number * tokens // experts) - mask[group].sum(0)
            mask[group] |= _even_round(cost[group], mask[group], room)
    return mask.to(scores.device)


def _even_round(cost: Tensor, taken: Tensor, room: Tensor) -> Tensor:
    """One expert a token, of those it has not taken, each with room for so many tokens."""
    from scipy.optimize import linear_sum_assignment  # which nothing else here needs

    tokens, experts = cost.shape
    # one taken pair costs more than all the others could gain
    span = float(cost.max() - cost.min()) + 1
    allowed = cost.masked_fill(taken, float(cost.min()) - tokens * span)
    expert = torch.arange(experts).repeat_interleave(room)
    row, place = linear_sum_assignment(allowed[:, expert].numpy(), maximize=True)
    assigned = torch.zeros_like(taken)
    assigned[torch.from_numpy(row), expert[torch.from_numpy(place)]] = True
    assert not (assigned & taken).any()
    return assigned


@torch.no_grad()
def sinkhorn(
    logits: Float[Tensor, "groups tokens experts"],
    *,
    tolerance: float = 1e-4,
    max_iterations: int = 100,
) -> Float[Tensor, "groups tokens experts"]:
    """S-BASE: the joint distribution of tokens and experts nearest to the router's, evened out.

        pi_te = exp(z_te + u_t + v_e),  sum_e pi_te = 1 / tokens,  sum_t pi_te = 1 / experts
                                                                                (arXiv 2202.01169)

    `top_k_mask` of it is the assignment, which is near balance and not exactly there. In the log
    domain, where logsumexp takes out the largest term: a peer takes exp(z), which overflows, and
    continues until it has converged (Megatron-LM, `moe_utils.py`: `sinkhorn`; tolerance 1e-4).

    Args:
        tolerance: a group is done when no v has moved by more.
        max_iterations: after which a group is done all the same.

    Returns:
        log pi, since pi itself is 0 for experts of which one may still be a token's second; rows of
        pi have their sum, and columns theirs up to the tolerance.
    """
    tokens, experts = logits.shape[-2:]
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    v = z.new_zeros(z.shape[0], 1, experts)
    moving = torch.ones_like(v[..., :1], dtype=torch.bool)  # each group by itself, or the groups
    for number in range(max_iterations):  # of a pass would change one another
        new = -math.log(experts) - (z + _of_tokens(z, v)).logsumexp(-2, keepdim=True)
        change = (new - v).abs().amax(-1, keepdim=True)
        v = new.where(moving, v)
        moving = moving & (change > tolerance)
        # on a GPU each look waits for it; the groups that are done stay as they are
        if ((number + 1) % CHECKED_EVERY == 0 or not moving.is_cuda) and not moving.any():
            break
    return (z + v).log_softmax(-1) - math.log(tokens)


def _of_tokens(z: Tensor, v: Tensor) -> Tensor:
    """u, given v."""
    return -math.log(z.shape[-2]) - (z + v).logsumexp(-1, keepdim=True)


def _highest(scores: Tensor, number: int, dim: int) -> Tensor:
    # a stable sort, since what topk takes of equal scores depends on the device
    order = scores.argsort(dim=dim, descending=True, stable=True).narrow(dim, 0, number)
    return torch.zeros_like(scores, dtype=torch.bool).scatter(dim, order, True)


@dataclass(frozen=True)
class ExpertChoice(Method):
    """Experts choose tokens, see `expert_choice`.

    Attributes: capacity_factor: tokens an expert takes, as a multiple of its even share.
    """

    capacity_factor: float = 1.0

    def most(self, top_k: int, experts: int) -> int:
        return experts

    def assignments(self, tokens: int, top_k: int, experts: int) -> int:
        return experts * capacity(self.capacity_factor, tokens, top_k, experts)

    def assign(self, logits: Tensor, scores: Tensor, top_k: int) -> Tensor:
        return expert_choice(scores, top_k, capacity_factor=self.capacity_factor)


@dataclass(frozen=True)
class Base(Method):
    """An even assignment of the largest total score, see `base_assignment`."""

    def most(self, top_k: int, experts: int) -> int:
        return top_k

    def assign(self, logits: Tensor, scores: Tensor, top_k: int) -> Tensor:
        return base_assignment(logits, top_k)


@dataclass(frozen=True)
class Sinkhorn(Method):
    """Each token's top-k after scores were evened out, see `sinkhorn`.

    Attributes: tolerance, max_iterations: when the evening-out is done.
    """

    tolerance: float = 1e-4
    max_iterations: int = 100

    def most(self, top_k: int, experts: int) -> int:
        return top_k

    def assign(self, logits: Tensor, scores: Tensor, top_k: int) -> Tensor:
        even = sinkhorn(logits, tolerance=self.tolerance, max_iterations=self.max_iterations)
        return top_k_mask(even, top_k)

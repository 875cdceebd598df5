"""The steps on which a balance loss is tried, and their gradients by definition and by known bugs.

A step has ranks, passes (micro-batches) and padding. Routers are linear: the logits of layer l are
`x @ W_l`, and the gradient of W is compared. It tells f from P, each pass from each other and each
layer from each other, since inputs and routers differ in all of them.
"""

from dataclasses import dataclass
from itertools import product
from typing import Literal, NamedTuple

import torch
from torch import Tensor

LAYERS, EXPERTS, TOP_K = 3, 8, 2
SEQUENCES, TOKENS, WIDTH = 4, 16, 12
PADDED = 3.0  # what inputs are multiplied with at padding, which must not count

ScopeName = Literal["global", "micro", "sequence"]


@dataclass(frozen=True)
class Scenario:
    """A step to try.

    Attributes:
        name: as it is printed.
        ranks, passes: how many; each pass has 4 sequences of 16 tokens.
        padding: whether sequences have different lengths.
        recompute: whether the loss is computed within an activation checkpoint.
        steps: how many are taken; the gradient is that of the last.
    """

    name: str
    ranks: int = 1
    passes: int = 1
    padding: bool = False
    recompute: bool = False
    steps: int = 1


BASE = Scenario("one pass")
SCENARIOS = (
    BASE,
    Scenario("4 passes", passes=4),
    Scenario("a second step", passes=4, steps=2),
    Scenario("recomputed", passes=4, recompute=True),
    Scenario("padding", padding=True),
    Scenario("padding, 4 passes", passes=4, padding=True),
    Scenario("2 ranks", ranks=2),
    Scenario("2 ranks, 4 passes", ranks=2, passes=4),
    Scenario("2 ranks, 4 passes, padding", ranks=2, passes=4, padding=True),
)


def routers() -> Tensor:
    """[layers, width, experts] the weights of the routers."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(LAYERS, WIDTH, EXPERTS, generator=generator) / 2


def inputs(scenario: Scenario, step: int, rank: int, number: int) -> tuple[Tensor, Tensor]:
    """[sequences, tokens, width] of one pass, and which of its tokens are no padding."""
    seed = 1 + number + 10 * rank + 100 * step
    generator = torch.Generator().manual_seed(seed)
    shift = torch.randn(WIDTH, generator=generator)
    x = torch.randn(SEQUENCES, TOKENS, WIDTH, generator=generator) + shift
    length = torch.randint(2, TOKENS, (SEQUENCES,), generator=generator)
    mask = torch.arange(TOKENS) < length[:, None]
    if not scenario.padding:
        return x, torch.ones_like(mask)
    return x.where(mask[..., None], PADDED * x), mask


class Deviations(NamedTuple):
    """How a loss differs from the definition. Each field's first value is the definition's.

    Attributes:
        counts: what f counts.
        choices: which selections it counts.
        probs: the distribution that meets f.
        layers: whether layers are combined after the product, or f and P are pooled before it.
        padding_in_f, padding_in_p: whether padding counts.
        equal: whether passes weigh equally, whatever their tokens.
    """

    counts: str
    choices: str = ""
    probs: str = ""
    layers: str = ""
    padding_in_f: bool = False
    padding_in_p: bool = False
    equal: bool = False

    def words(self, scope: ScopeName) -> list[str]:
        """What deviates."""
        said = [] if self.counts == scope else [f"f counts {COUNTS[self.counts]}"]
        said += [text for text in (self.choices, self.probs, self.layers) if text]
        said += ["padding counts in f"] * self.padding_in_f
        said += ["padding counts in P"] * self.padding_in_p
        return said + ["passes weigh equally, whatever their tokens"] * self.equal


COUNTS = {
    "global": "the whole step",
    "micro": "its own pass",
    "prefix": "the passes so far (the buffer of arXiv 2501.11873, Algorithm 1)",
    "rank": "its own rank",
    "across": "one pass of all ranks",
    "own_prefix": "the passes so far of its own rank",
    "sequence": "its own sequence",
    "twice": "the passes so far, recomputed ones twice",
    "kept": "earlier steps as well",
}
FIRST = "f counts first choices alone (GShard)"
SELECTED = "P is renormalised over the selected experts (MaxText until 2025-03-31)"
POOLED = "layers are pooled before the product (Hugging Face)"


def candidates(scenario: Scenario, scope: ScopeName, likely: str | None = None) -> list[Deviations]:
    """What a loss may have computed in a scenario, the fewest deviations first.

    Args:
        likely: what f counts in another scenario, to be tried before others.
    """
    first: list[str] = [scope] if likely is None else [scope, likely]
    counts = list(dict.fromkeys(first + list(COUNTS)))
    if not scenario.recompute:
        counts.remove("twice")
    if scenario.steps == 1:
        counts.remove("kept")
    padding = (False, True) if scenario.padding else (False,)
    every = product(counts, ("", FIRST), ("", SELECTED), ("", POOLED), padding, padding, padding)
    made = [Deviations(*each) for each in every]
    return sorted(made, key=lambda each: len(each.words(scope)))


class Passes(NamedTuple):
    """A step in double precision, by rank and pass.

    Attributes:
        probs: [ranks, passes, layers, sequences, tokens, experts], with the gradient.
        selected: [ranks, passes, layers, sequences, tokens, top_k] the experts.
        mask: [ranks, passes, sequences, tokens].
    """

    probs: Tensor
    selected: Tensor
    mask: Tensor


def expected(scenario: Scenario, kinds: list[Deviations]) -> list[Tensor]:
    """[layers, width, experts] the gradient of W in the last step, for each kind of loss."""
    weight = routers().double().requires_grad_()
    steps = [_step(scenario, step, weight) for step in range(scenario.steps)]
    values = [_loss(steps, kind) for kind in kinds]
    return [torch.autograd.grad(value, weight, retain_graph=True)[0] for value in values]


def _step(scenario: Scenario, step: int, weight: Tensor) -> Passes:
    parts = [
        [inputs(scenario, step, rank, number) for number in range(scenario.passes)]
        for rank in range(scenario.ranks)
    ]
    x = torch.stack([torch.stack([x for x, _ in row]) for row in parts]).double()
    mask = torch.stack([torch.stack([mask for _, mask in row]) for row in parts])
    logits = torch.einsum("rastd,lde->ralste", x, weight)
    # selections as the single precision of a trainer has them
    single = torch.einsum("rastd,lde->ralste", x.float(), weight.detach().float())
    return Passes(logits.softmax(-1), single.topk(TOP_K, dim=-1).indices, mask)


def _loss(steps: list[Passes], kind: Deviations) -> Tensor:
    last = steps[-1]
    everywhere = torch.ones_like(last.mask)
    in_p = everywhere if kind.padding_in_p else last.mask
    probs = last.probs
    if kind.probs:
        chosen = torch.zeros_like(probs).scatter(-1, last.selected, 1.0)
        probs = probs * chosen
        probs = probs / probs.sum(-1, keepdim=True)
    mass = (probs * in_p[:, :, None, ..., None]).sum(-2)  # [ranks, passes, layers, seqs, experts]
    counted = [_counts(step, kind) for step in steps]
    f = _summed(counted, kind.counts)
    f = f / f.sum(-1, keepdim=True)
    tokens = in_p.sum((-2, -1))  # [ranks, passes]
    total = tokens * tokens.numel() if kind.equal else tokens.sum()
    mass = mass / (total[:, :, None, None, None] if kind.equal else total)
    if kind.layers:
        f, mass = f.mean(2, keepdim=True), mass.mean(2, keepdim=True)
    return EXPERTS * (f * mass).sum() / f.shape[2]


def _counts(step: Passes, kind: Deviations) -> Tensor:
    """[ranks, passes, layers, sequences, experts] assignments."""
    index = step.selected[..., :1] if kind.choices else step.selected
    real = torch.ones_like(step.mask) if kind.padding_in_f else step.mask
    ones = real[:, :, None, ..., None].expand_as(index).double()
    empty = torch.zeros(*index.shape[:4], EXPERTS, dtype=torch.double)
    return empty.scatter_add(-1, index.flatten(-2), ones.flatten(-2))


def _summed(steps: list[Tensor], what: str) -> Tensor:
    """The counts that each sequence's f is made of, in the shape of one step's counts."""
    counts = steps[-1]
    if what == "sequence":
        return counts
    by_pass = counts.sum(3, keepdim=True)
    across = by_pass.sum(0, keepdim=True)
    sums = {
        "micro": lambda: by_pass,
        "rank": lambda: by_pass.sum(1, keepdim=True),
        "across": lambda: across,
        "prefix": lambda: across.cumsum(1),
        "own_prefix": lambda: by_pass.cumsum(1),
        "twice": lambda: 2 * across.cumsum(1) - across,
        "global": lambda: across.sum(1, keepdim=True),
        "kept": lambda: sum(each.sum((0, 1, 3), keepdim=True) for each in steps),
    }
    return sums[what]().expand_as(counts)

"""Balance losses with and without known bugs, as `moebench conform` calls them."""

import torch
import torch.distributed as dist
from torch import Tensor

from examples.global_loss import GlobalLoss, routing, summed
from moebench.balance import Global, Micro, balance_loss


class Exact(GlobalLoss):
    """The definition."""


class Summed(Exact):
    """As a sum over passes and ranks."""

    def begin(self, passes: list[tuple[list[Tensor], Tensor]], top_k: int) -> None:
        super().begin(passes, top_k)
        self.parts = 1


class OverRanks(Exact):
    """Divided by the ranks once too often (Megatron-LM, issue 3672)."""

    def begin(self, passes: list[tuple[list[Tensor], Tensor]], top_k: int) -> None:
        super().begin(passes, top_k)
        self.parts = len(passes)


class TimesRanks(Exact):
    """Multiplied with the ranks once too often (transformers, issue 48690)."""

    def begin(self, passes: list[tuple[list[Tensor], Tensor]], top_k: int) -> None:
        super().begin(passes, top_k)
        self.parts *= dist.get_world_size()


class Prefix(Exact):
    """The buffer of Algorithm 1: f counts the passes so far. Recomputed passes count once more."""

    def begin(self, passes: list[tuple[list[Tensor], Tensor]], top_k: int) -> None:
        super().begin(passes, top_k)
        self.counts = torch.zeros_like(self.frequency)

    def __call__(self, router_logits: list[Tensor], top_k: int, mask: Tensor) -> Tensor:
        self.counts += summed(routing(router_logits, top_k, mask).counts.sum(1))
        self.frequency = self.counts / self.counts.sum(-1, keepdim=True)
        return super().__call__(router_logits, top_k, mask)


class Kept(Exact):
    """Counts that outlive their step."""

    counts: Tensor | int = 0

    def begin(self, passes: list[tuple[list[Tensor], Tensor]], top_k: int) -> None:
        super().begin(passes, top_k)
        parts = [routing(logits, top_k, mask).counts.sum(1) for logits, mask in passes]
        self.counts = self.counts + summed(torch.stack(parts).sum(0))
        self.frequency = self.counts / self.counts.sum(-1, keepdim=True)


class RaisingOnce(Exact):
    """As defined, but the second rank raises in steps of one pass, where the first waits for it."""

    def begin(self, passes: list[tuple[list[Tensor], Tensor]], top_k: int) -> None:
        if dist.get_rank() == 1 and len(passes) == 1:
            raise ValueError("of the second rank")
        super().begin(passes, top_k)


def micro(router_logits: list[Tensor], top_k: int, mask: Tensor) -> Tensor:
    """Each pass by itself, padding excluded, which weighs passes equally."""
    seen = routing(router_logits, top_k, mask)
    return balance_loss(Micro(len(mask)).frequency(seen), seen.prob_mass)


def pooled(router_logits: list[Tensor], top_k: int, mask: Tensor) -> Tensor:
    """Layers pooled before the product, top_k at uniform routing (Hugging Face)."""
    seen = routing(router_logits, top_k, mask)
    f = Global().frequency(seen)
    return top_k * balance_loss(f, seen.prob_mass, layers="pooled")


def unmasked(router_logits: list[Tensor], top_k: int, mask: Tensor) -> Tensor:
    """Padding counts."""
    return micro(router_logits, top_k, torch.ones_like(mask))


def detached(router_logits: list[Tensor], top_k: int, mask: Tensor) -> Tensor:
    """No gradient reaches P."""
    return micro([logits.detach() for logits in router_logits], top_k, mask)


def own(router_logits: list[Tensor], top_k: int, mask: Tensor) -> Tensor:
    """A formula that is nobody's."""
    return sum(logits.softmax(-1).square().sum() for logits in router_logits)  # pyright: ignore


def raising(router_logits: list[Tensor], top_k: int, mask: Tensor) -> Tensor:
    raise ValueError("no such layer")

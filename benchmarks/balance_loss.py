"""The cost of the balance loss, forward and backward, beside that of others.

From the router logits of every layer to their gradients: `moebench.balance`, the
`load_balancing_loss_func` of transformers' Qwen3-MoE, and a plain loop over tokens. All three
compute one number, f and P pooled over layers and k at uniform routing; that they agree is asserted
first. The entrants take turns in one process and are compared by the median of their paired ratios.

    python benchmarks/balance_loss.py [--threads N] [--rounds N]
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from timing import device_here, header, timed
from torch import Tensor
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from moebench.balance import Global, balance_loss, join, observe


class Size(NamedTuple):
    layers: int
    sequences: int
    tokens: int
    experts: int
    top_k: int

    def logits(self, device: torch.device) -> tuple[Tensor, ...]:
        """Of each layer, [sequences * tokens, experts], as Hugging Face models give them."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.layers, self.sequences * self.tokens, self.experts)
        # experts differ in how they are liked, as routers are balanced because they would
        liking = torch.randn(self.layers, 1, self.experts, generator=generator)
        logits = (torch.randn(shape, generator=generator) + liking).to(device)
        return tuple(each.requires_grad_() for each in logits.unbind(0))


SIZES = {
    "small": Size(layers=4, sequences=4, tokens=32, experts=16, top_k=4),
    "16 experts": Size(layers=4, sequences=32, tokens=256, experts=16, top_k=4),
    "64 experts": Size(layers=4, sequences=32, tokens=256, experts=64, top_k=8),
}
LOOPED = "small"  # the only one that the loop goes through in milliseconds
AGREE = 1e-6  # relative, in fp32

Loss = Callable[[tuple[Tensor, ...], Size], Tensor]


def ours(logits: tuple[Tensor, ...], size: Size, mask: Tensor | None = None) -> Tensor:
    shape = (size.sequences, size.tokens, size.experts)
    parts = [observe(each.view(shape), top_k=size.top_k, mask=mask) for each in logits]
    routing = join(parts, along="layers")
    frequency = Global().frequency(routing)
    return size.top_k * balance_loss(frequency, routing.prob_mass, layers="pooled")


def theirs(logits: tuple[Tensor, ...], size: Size, mask: Tensor | None = None) -> Tensor:
    # its annotation means a tuple of any length
    loss = load_balancing_loss_func(logits, size.experts, size.top_k, mask)  # pyright: ignore
    assert isinstance(loss, Tensor)
    return loss


def loop(logits: tuple[Tensor, ...], size: Size) -> Tensor:
    count, mass, rows = [0] * size.experts, torch.zeros(size.experts), 0
    for layer in logits:
        for row in layer:
            p = row.softmax(-1)
            for expert in p.topk(size.top_k).indices.tolist():
                count[expert] += 1
            mass = mass + p
            rows += 1
    product = sum(count[each] / rows * mass[each] / rows for each in range(size.experts))
    return size.experts * torch.as_tensor(product)


def gradients(loss: Loss, logits: tuple[Tensor, ...], size: Size) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient in all logits."""
    value = loss(logits, size)
    found = torch.autograd.grad(value, logits)
    return value.detach(), torch.stack(found)


def disagreement(size: Size, device: torch.device, loss: Loss, other: Loss) -> float:
    """The larger relative error of one loss and its gradient from another's."""
    logits = size.logits(device)
    pairs = zip(gradients(loss, logits, size), gradients(other, logits, size), strict=True)
    return max(float((one - best).norm() / best.norm()) for one, best in pairs)


def check(device: torch.device) -> float:
    """Assert that all entrants compute the same; returns the worst relative error."""
    worst = [disagreement(SIZES[LOOPED], device, ours, loop)]
    for size in SIZES.values():
        length = torch.arange(size.sequences, device=device) % size.tokens + 1
        mask = torch.arange(size.tokens, device=device) < length[:, None]
        worst += [
            disagreement(size, device, ours, theirs),
            disagreement(size, device, partial(ours, mask=mask), partial(theirs, mask=mask)),
        ]
    assert max(worst) < AGREE, worst
    return max(worst)


def main() -> None:
    parser = argparse.ArgumentParser(description="The cost of the balance loss, beside others.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=25)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    device = device_here()
    print(f"{header(asked.threads, 'transformers')}, {asked.rounds} rounds")
    print(f"losses and gradients agree to {check(device):.1e}\n")
    print(f"{'':12}{'ms: ours':>10}{'theirs':>10}{'loop':>10}{'theirs/ours':>13}{'loop/ours':>11}")
    for name, size in SIZES.items():
        logits = size.logits(device)
        entrants: list[Loss] = [ours, theirs, *([loop] if name == LOOPED else [])]
        times = [
            [timed(partial(gradients, each, logits, size), device).own for each in entrants]
            for _ in range(asked.rounds + 1)
        ][1:]  # the first round warms up
        columns = list(zip(*times, strict=True))
        cells = [f"{1e3 * statistics.median(each):10.2f}" for each in columns]
        ratios = [
            statistics.median(other / own for own, other in zip(columns[0], each, strict=True))
            for each in columns[1:]
        ]
        blank = "" if len(columns) == 3 else f"{'':10}"
        print(
            f"{name:12}{''.join(cells)}{blank}{ratios[0]:13.2f}"
            + "".join(f"{each:11.0f}" for each in ratios[1:])
        )


if __name__ == "__main__":
    main()

"""The cost of the balance loss, forward and backward, against other implementations.

Times the computation from the router logits of every layer to their gradients, with three
implementations: `moebench.balance`, `load_balancing_loss_func` of transformers' Qwen3-MoE, and a
plain loop over tokens. All three compute the same value: f and P pooled over layers, k at uniform
routing. The script first asserts that they agree. They take turns in one process and are compared
by the median of their paired ratios.

    python benchmarks/balance_loss.py [--threads N] [--rounds N]
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from tables import at_least_one
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
        """Router logits of each layer, [sequences * tokens, experts], as in Hugging Face models."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.layers, self.sequences * self.tokens, self.experts)
        # a different mean per expert, as in a router without balance
        preference = torch.randn(self.layers, 1, self.experts, generator=generator)
        logits = (torch.randn(shape, generator=generator) + preference).to(device)
        return tuple(layer.requires_grad_() for layer in logits.unbind(0))


SIZES = {
    "small": Size(layers=4, sequences=4, tokens=32, experts=16, top_k=4),
    "16 experts": Size(layers=4, sequences=32, tokens=256, experts=16, top_k=4),
    "64 experts": Size(layers=4, sequences=32, tokens=256, experts=64, top_k=8),
}
LOOPED = "small"  # the only size for which the loop takes milliseconds
TOLERANCE = 1e-6  # relative, in fp32

Loss = Callable[[tuple[Tensor, ...], Size], Tensor]


def moebench_loss(logits: tuple[Tensor, ...], size: Size, mask: Tensor | None = None) -> Tensor:
    shape = (size.sequences, size.tokens, size.experts)
    parts = [observe(layer.view(shape), top_k=size.top_k, mask=mask) for layer in logits]
    routing = join(parts, along="layers")
    frequency = Global().frequency(routing)
    return size.top_k * balance_loss(frequency, routing.prob_mass, layers="pooled")


def transformers_loss(logits: tuple[Tensor, ...], size: Size, mask: Tensor | None = None) -> Tensor:
    # the annotation of transformers means a tuple of any length
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
    product = sum(count[i] / rows * mass[i] / rows for i in range(size.experts))
    return size.experts * torch.as_tensor(product)


def gradients(loss: Loss, logits: tuple[Tensor, ...], size: Size) -> tuple[Tensor, Tensor]:
    """The loss and its gradient with respect to all logits."""
    value = loss(logits, size)
    return value.detach(), torch.stack(torch.autograd.grad(value, logits))


def disagreement(size: Size, device: torch.device, loss: Loss, other: Loss) -> float:
    """The relative difference of two losses or of their gradients, whichever is larger."""
    logits = size.logits(device)
    pairs = zip(gradients(loss, logits, size), gradients(other, logits, size), strict=True)
    return max(float((value - reference).norm() / reference.norm()) for value, reference in pairs)


def check(device: torch.device) -> float:
    """Assert that all variants agree; returns the largest relative difference."""
    differences = [disagreement(SIZES[LOOPED], device, moebench_loss, loop)]
    for size in SIZES.values():
        length = torch.arange(size.sequences, device=device) % size.tokens + 1
        mask = torch.arange(size.tokens, device=device) < length[:, None]
        differences += [
            disagreement(size, device, moebench_loss, transformers_loss),
            disagreement(
                size,
                device,
                partial(moebench_loss, mask=mask),
                partial(transformers_loss, mask=mask),
            ),
        ]
    assert max(differences) < TOLERANCE, differences
    return max(differences)


def main() -> None:
    parser = argparse.ArgumentParser(description="The cost of the balance loss.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=at_least_one, default=25)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = device_here()
    print(f"{header(args.threads, 'transformers')}, {args.rounds} rounds")
    print(f"losses and gradients agree to {check(device):.1e}\n")
    names = ["moebench", "transformers", "loop"]
    ratios = [f"{name}/moebench" for name in names[1:]]
    print(f"{'milliseconds':14}" + "".join(f"{name:>23}" for name in [*names, *ratios]))
    for name, size in SIZES.items():
        logits = size.logits(device)
        losses: list[Loss] = [moebench_loss, transformers_loss]
        if name == LOOPED:
            losses.append(loop)
        times = [
            [timed(partial(gradients, loss, logits, size), device).own for loss in losses]
            for _ in range(args.rounds + 1)
        ][1:]  # the first round warms up
        own, *others = zip(*times, strict=True)
        cells = [f"{1e3 * statistics.median(column):.2f}" for column in (own, *others)]
        cells += [""] * (len(names) - len(cells))
        cells += [
            f"{statistics.median(a / b for a, b in zip(column, own, strict=True)):.2f}"
            for column in others
        ]
        print(f"{name:14}" + "".join(f"{cell:>23}" for cell in cells))


if __name__ == "__main__":
    main()

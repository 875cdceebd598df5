"""What stacking arms gives, and what more experts of equal active size cost.

Stacked arms: steps of 1, 2, 4, ... arms in one stack, as arms' tokens per second against one arm.
Experts: the step of a model with 8 to 128 experts, of which each token passes as many. Variants
take turns in one process and are compared by the median of their paired ratios.

    python benchmarks/stack.py [--shape D] [--most 32] [--rounds 7] [--smoke]
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from race import SHAPES, SMOKE, WEIGHT, Shape, model_of, ours
from timing import device_here, header, timed

from moebench.balance import Global, Term
from moebench.train.gradients import accumulate_together
from moebench.train.share import ArmStep
from moebench.train.stack import Stack
from moebench.train.step import Objective, Step, initial_states

OBJECTIVE = Objective((Term(Global(), WEIGHT),), micro_bsz=1)


def compute_of(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def stacked(shape: Shape, arms: int, device: torch.device) -> Callable[[], object]:
    """A step of so many arms, each with its own batch and optimizer."""
    models = [model_of(shape, compute_of(device), device, seed) for seed in range(arms)]
    stack = Stack(models)
    optimizers = [torch.optim.AdamW(each.parameters(), lr=1e-4, fused=True) for each in models]
    size = (shape.sequences, shape.seq_len + 1)
    tokens = [torch.randint(0, shape.vocab_size, size, device=device) for _ in models]

    def step() -> None:
        for each in optimizers:
            each.zero_grad()
        for each in stack.parameters.values():
            each.grad = None
        steps = [Step(each, shape.sequences) for each in tokens]
        shares = [
            ArmStep(OBJECTIVE, each, initial_states(OBJECTIVE, model, each))
            for each, model in zip(steps, models, strict=True)
        ]
        accumulate_together(stack.forward, shares)
        stack.hand_out()
        for each in optimizers:
            each.step()

    return step


def compare(
    field: dict[int, Callable[[], object]], device: torch.device, rounds: int
) -> dict[int, tuple[float, float]]:
    """Of each: seconds, and the median of its paired ratios to the first."""
    for act in field.values():
        act()
    times = [{each: timed(act, device).own for each, act in field.items()} for _ in range(rounds)]
    first = next(iter(field))
    return {
        each: (
            statistics.median(one[each] for one in times),
            statistics.median(one[each] / one[first] for one in times),
        )
        for each in field
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Stacked arms, and more experts.")
    parser.add_argument("--shape", choices=[*SHAPES], default="D")
    parser.add_argument("--most", type=int, default=32, help="arms")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="a tiny shape, to see that it runs")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    device = device_here()
    shape = SMOKE if asked.smoke else SHAPES[asked.shape]
    print(f"{header(asked.threads)}, {asked.rounds} rounds, {shape}\n")
    arms = [each for each in (1, 2, 4, 8, 16, 32) if each <= asked.most]
    found = compare({each: stacked(shape, each, device) for each in arms}, device, asked.rounds)
    print("| arms | arms' tokens/s | against one |\n|---:|---:|---:|")
    for each, (seconds, ratio) in found.items():
        print(f"| {each} | {each * shape.tokens / seconds:,.0f} | {each / ratio:.2f} |")
    sizes = {each: shape._replace(num_experts=each) for each in (8, 16, 32, 64, 128)}
    field = {each: ours(one, compute_of(device), device) for each, one in sizes.items()}
    found = compare(field, device, asked.rounds)
    print("\n| experts | tokens/s | step against 8 experts |\n|---:|---:|---:|")
    for each, (seconds, ratio) in found.items():
        print(f"| {each} | {shape.tokens / seconds:,.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()

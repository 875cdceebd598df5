"""The gain from stacking arms, and the cost of more experts at equal active size.

Stacked arms: steps of 1, 2, 4, ... arms in one stack. The script prints tokens per second over all
arms, and relative to one arm. Experts: steps of models with 8 to 128 experts, of which each token
uses the same number. The variants take turns in one process and are compared by the median of their
paired ratios.

    python benchmarks/stack.py [--shape D] [--most 32] [--rounds 7] [--json] [--smoke]
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from shapes import SHAPES, SMOKE, WEIGHT, Shape, model_of, moebench_step
from tables import Tables, at_least_one, show
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
    """A step of `arms` stacked arms, each with its own batch and optimizer."""
    models = [model_of(shape, compute_of(device), device, seed) for seed in range(arms)]
    stack = Stack(models)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True) for model in models]
    size = (shape.sequences, shape.seq_len + 1)
    tokens = [torch.randint(0, shape.vocab_size, size, device=device) for _ in models]

    def step() -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        for parameter in stack.parameters.values():
            parameter.grad = None
        arm_steps = []
        for model, batch in zip(models, tokens, strict=True):
            own = Step(batch, shape.sequences)
            arm_steps.append(ArmStep(OBJECTIVE, own, initial_states(OBJECTIVE, model, own)))
        accumulate_together(stack.forward, arm_steps)
        stack.distribute()
        for optimizer in optimizers:
            optimizer.step()

    return step


def compare(
    variants: dict[int, Callable[[], object]], device: torch.device, rounds: int
) -> dict[int, tuple[float, float]]:
    """The median seconds of each variant, and the median of its paired ratios to the first."""
    for step in variants.values():
        step()
    times = [
        {name: timed(step, device).own for name, step in variants.items()} for _ in range(rounds)
    ]
    first = next(iter(variants))
    return {
        name: (
            statistics.median(row[name] for row in times),
            statistics.median(row[name] / row[first] for row in times),
        )
        for name in variants
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Stacked arms, and more experts.")
    parser.add_argument("--shape", choices=[*SHAPES], default="D")
    parser.add_argument("--most", type=int, default=32, help="arms")
    parser.add_argument("--rounds", type=at_least_one, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="a tiny shape, for tests")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = device_here()
    shape = SMOKE if args.smoke else SHAPES[args.shape]
    if not args.json:
        print(f"{header(args.threads)}, {args.rounds} rounds, {shape}")
    sizes = [arms for arms in (1, 2, 4, 8, 16, 32) if arms <= args.most]
    stacks = {arms: stacked(shape, arms, device) for arms in sizes}
    tables: Tables = {"Stacked arms": []}
    for arms, (seconds, ratio) in compare(stacks, device, args.rounds).items():
        rate = arms * shape.tokens / seconds
        row = {"arms": arms, "arms' tokens/s": rate, "against one": arms / ratio}
        tables["Stacked arms"].append(row)
    del stacks
    models = {
        experts: moebench_step(shape._replace(num_experts=experts), compute_of(device), device)
        for experts in (8, 16, 32, 64, 128)
    }
    tables["Experts, at equal active size"] = [
        {"experts": experts, "tokens/s": shape.tokens / seconds, "step against 8 experts": ratio}
        for experts, (seconds, ratio) in compare(models, device, args.rounds).items()
    ]
    show(tables, as_json=args.json)


if __name__ == "__main__":
    main()

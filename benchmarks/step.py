"""Tokens per second of a training step on this machine, and what its routing statistics cost.

Variants take turns in one process and are compared by the median of their paired ratios, so that a
machine that slows down slows all of them.

    python benchmarks/step.py [--threads N] [--rounds N]
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch

from moebench.balance import Global, Term
from moebench.model.transformer import MoETransformer, initialize
from moebench.train.measure import step_metrics
from moebench.train.step import Objective, Outcome, Step, accumulate_gradients

SHAPES: dict[str, tuple[dict[str, int], int, int]] = {
    # name: model, sequences, tokens in a sequence
    "A": ({"d_model": 256, "num_experts": 16, "top_k": 4, "expert_dim": 128}, 16, 256),
    "D": ({"d_model": 128, "num_experts": 8, "top_k": 2, "expert_dim": 128}, 8, 128),
    "tiny": ({"d_model": 128, "num_experts": 16, "top_k": 2, "expert_dim": 96}, 32, 128),
}


class Stepper:
    """A model that takes one optimizer step at a time on random tokens."""

    def __init__(self, name: str, compute: torch.dtype, device: torch.device) -> None:
        shape, sequences, length = SHAPES[name]
        self.model = MoETransformer(
            vocab_size=256,
            num_layers=4,
            num_heads=4,
            compute=compute,
            **shape,  # pyright: ignore[reportArgumentType]
        ).to(device)
        initialize(self.model, 0)
        self.tokens = torch.randint(0, 256, (sequences, length + 1), device=device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.objective = Objective((Term(Global(), 0.1),), micro_bsz=4)
        self.seen = self.step()

    def step(self) -> Outcome:
        self.optimizer.zero_grad()
        step = Step(self.tokens, device_bsz=len(self.tokens))
        outcome = accumulate_gradients(self.model, self.objective, step)
        self.optimizer.step()
        return outcome

    def statistics(self) -> None:
        step_metrics(self.seen, self.objective)

    @property
    def tokens_a_step(self) -> int:
        return self.tokens[:, 1:].numel()


def seconds(act: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    act()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description="Tokens per second of a training step.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    print(f"torch {torch.__version__}, {where}, {asked.threads} threads, {asked.rounds} rounds")
    print(f"{'shape':6} {'fp32 tok/s':>12} {'bf16 tok/s':>12} {'bf16/fp32':>10} {'statistics':>11}")
    for name in SHAPES:
        wide = Stepper(name, torch.float32, device)
        narrow = Stepper(name, torch.bfloat16, device)
        times = [
            [seconds(act, device) for act in (wide.step, narrow.step, wide.statistics)]
            for _ in range(asked.rounds)
        ]
        fp32, bf16, _ = (statistics.median(each) for each in zip(*times, strict=True))
        ratio = statistics.median(one / other for one, other, _ in times)
        share = statistics.median(stats / one for one, _, stats in times)
        print(
            f"{name:6} {wide.tokens_a_step / fp32:12,.0f} {narrow.tokens_a_step / bf16:12,.0f} "
            f"{ratio:10.2f} {share:11.2%}"
        )


if __name__ == "__main__":
    main()

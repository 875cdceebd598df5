"""What a step costs on the pretended GPU: launches, waits, and memory beside the planned.

    python -m tests.pretended_gpu.costs [--places SETTING..]

prints a table by compute capability, or with `--places` the launches of one case by the line of
moebench, or by the operator of backward, that made them. Triton's kernels are launched, and
compute nothing.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple
from unittest.mock import patch

from tests.pretended_gpu import plugin  # before torch

# isort: split
import torch

from moebench.config.compose import Composer
from moebench.config.cost import memory_bytes
from moebench.data.corpus import prepare
from moebench.model import fused
from moebench.train.build import make_state
from moebench.train.expert_kernels import TORCH, TRITON, WITH_BF16
from moebench.train.kernels import Kernels, apply
from moebench.train.loop import TrainingRun
from moebench.train.stack import GradientRequest, Stack
from tests.pretended_gpu.gpu import Gpu, place

CAPABILITIES = (8, 0), (9, 0), (10, 0)
CASES = [("bf16", 1), ("bf16", 2), ("bf16", 8), ("fp32", 1), ("fp32", 8)]
WORDS = ("global_bsz=8", "seq_len=64", "run.log_every=100", "train.steps=1000")
MadeRun = Callable[..., TrainingRun]


class Costs(NamedTuple):
    """Of one step that is not logged, from its batch to its update.

    Attributes:
        memory: bytes at most, beyond those before the runs were made.
        planned: bytes that `run.stack=auto` expects.
    """

    launches: int
    waits: int
    memory: int
    planned: int


def costs(made: MadeRun, gpu: Gpu, *words: str, arms: int = 1, experts: str = TORCH) -> Costs:
    """Of the second step of a stack, since the first one makes state."""
    before, gpu.memory.peak = gpu.memory.live, gpu.memory.live
    runs = [made("cuda", *words, f"seed={seed}") for seed in range(arms)]
    for run in runs:
        apply(Kernels("sdpa", experts, compile=False, peak_flops=1.0), run.state.model)
    stack = Stack([run.state.model for run in runs])
    train(stack, runs)
    peak = gpu.memory.peak - before
    gpu.forget()
    train(stack, runs)
    return Costs(
        launches=sum(gpu.launches.values()),
        waits=sum(gpu.waits.values()),
        memory=max(peak, gpu.memory.peak - before),
        planned=sum(memory_bytes(run.config, run.corpus.vocab_size) for run in runs),
    )


def train(stack: Stack, runs: Sequence[TrainingRun]) -> None:
    """A step of all runs, up to the launch of its last operation."""
    requests = [GradientRequest(run, run.next_step()) for run in runs]
    outcomes = stack.update(requests, stack.gradients(requests))
    for request, outcome in zip(requests, outcomes, strict=True):
        request.run.finish(request.step, outcome)


@contextmanager
def without_triton(gpu: Gpu) -> Iterator[None]:
    """Count the launches of Triton's kernels, which compute nothing in the block."""
    with patch.object(fused, "launch", lambda kernel, *_, **__: gpu.launch(kernel)):
        yield


def made(device: str, *words: str) -> TrainingRun:
    """A run on generated text."""
    config = Composer().compose([*WORDS, "data=synthetic", "train.eval_every=0", *words])
    corpus = prepare(config.data)
    state = make_state(config, corpus.vocab_size, torch.device(device))
    return TrainingRun(config, corpus, state, torch.device(device))


def table() -> None:
    """Print the costs of A by capability, with the experts that `run.experts=auto` takes."""
    from tests.pretended_gpu.pretend import pretended

    print("| sm | precision | experts | arms | launches | waits | peak MB | planned MB |")
    print("|---|---|---|---:|---:|---:|---:|---:|")
    for capability in CAPABILITIES:
        for precision, arms in CASES:
            has_kernel = precision == "bf16" and capability[0] in WITH_BF16
            experts = TORCH if has_kernel else TRITON
            words = "model=small", f"train.precision={precision}"
            with pretended(capability, ties=False) as gpu, without_triton(gpu):
                found = costs(made, gpu, *words, arms=arms, experts=experts)
            sizes = f"{found.memory / 1e6:.0f} | {found.planned / 1e6:.0f}"
            case = f"{capability[0]}{capability[1]} | {precision} | {experts} | {arms}"
            print(f"| {case} | {found.launches} | {found.waits} | {sizes} |", flush=True)


def places(words: Sequence[str]) -> None:
    """Print where the launches of one arm come from."""
    from tests.pretended_gpu.pretend import pretended

    counts: Counter[str] = Counter()
    with pretended(ties=False) as gpu, without_triton(gpu):
        launch, forget = gpu.launch, gpu.forget

        def noted(name: str, number: int = 1) -> None:
            counts[f"{place()}: {name}"] += number
            launch(name, number)

        gpu.launch, gpu.forget = noted, lambda: (forget(), counts.clear())[0]
        costs(made, gpu, *words)
    for name, number in sorted(counts.items()):
        print(f"{number:5} {name}")
    print(f"{counts.total():5} in all")


def main() -> None:
    parser = argparse.ArgumentParser(description="What a step costs on the pretended GPU.")
    text = "where launches come from, with settings such as model=small"
    parser.add_argument("--places", nargs="*", metavar="SETTING", help=text)
    args = parser.parse_args()
    if plugin.REASON or plugin.HAS_GPU:
        parser.error(plugin.REASON or "this machine has a GPU: python benchmarks/launches.py")
    if args.places is None:
        table()
    else:
        places(args.places)


if __name__ == "__main__":
    main()

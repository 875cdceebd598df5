"""The launches and waits of a training step, its times, and its peak memory against the estimate.

A step is that of `moebench train` or of a stack of a sweep, without its records: batches, forward,
losses, backward, clipping and update, and in a logged step the metrics. The script counts the
operations that torch dispatches, and on a GPU also what the profiler sees: kernels, copies and
waits of the CPU, and how long the GPU computes. `estimate` is what `run.stack=auto` plans with.

    python benchmarks/launches.py [--json] [--smoke]
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tables import Row, reason, show
from timing import device_here, header
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode

from moebench.config.compose import Composer
from moebench.config.cost import memory_bytes
from moebench.data.batches import make_batches
from moebench.data.corpus import prepare
from moebench.train.build import make_state
from moebench.train.feed import Feed
from moebench.train.kernels import apply, choose
from moebench.train.loop import Event, TrainingRun
from moebench.train.stack import GradientRequest, Stack

BF16 = "train.precision=bf16"
CASES = [  # settings, and how many arms are stacked
    *(([f"model={model}", BF16], arms) for model in ("tiny", "small") for arms in (1, 2, 8)),
    (["model=small", "train.precision=fp32"], 1),
    (["model=small", "train.precision=fp32"], 8),
    (["model=small", BF16, "router=relu"], 1),
    (["model=small", BF16, "run.device_bsz=32"], 1),  # counts first
]
SMOKE = [(["model=smoke", "global_bsz=8", "data=synthetic"], arms) for arms in (1, 2, 4)]
EVERY = 20  # steps between logged ones; more than the steps before the first one that is profiled
TIMED = 9  # steps
REGION = "a step"


class Operations(TorchDispatchMode):
    """Counts the operations that compute or move data; views do not."""

    number = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        results = func._schema.returns
        self.number += any(one.alias_info is None or one.alias_info.is_write for one in results)
        return func(*args, **(kwargs or {}))


class Arms:
    """Some arms of equal shape in training, as a stack if they are several.

    Args:
        runs_dir: a folder for the file that holds the chosen kernels.

    Attributes:
        before: bytes on a GPU before the arms, with the tokens of the data: one copy serves all.
    """

    def __init__(self, words: list[str], number: int, device: torch.device, runs_dir: Path) -> None:
        words = [*words, f"run.device={device.type}", "run.threads=1", f"run.log_every={EVERY}"]
        words += ["train.steps=1000", "train.eval_every=0", "data.max_epochs=1e6"]
        self.configs = [Composer().compose([*words, f"seed={seed}"]) for seed in range(number)]
        self.corpus = prepare(self.configs[0].data)
        self.kernels = choose(self.configs[0], self.corpus.vocab_size, runs_dir, device)
        self._tokens = Feed(make_batches(self.corpus, self.configs[0]), device)
        self.before = 0
        if device.type == "cuda":
            self.before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        size = self.corpus.vocab_size, device, len(self.corpus.domains)
        states = [make_state(config, *size) for config in self.configs]
        for state in states:
            apply(self.kernels, state.model)
        self.runs = [
            TrainingRun(config, self.corpus, state, device)
            for config, state in zip(self.configs, states, strict=True)
        ]
        self.stack = Stack([run.state.model for run in self.runs])

    def step(self) -> list[Event]:
        """Train all of them by one step; returns without waiting for a GPU."""
        requests = [GradientRequest(run, run.next_step()) for run in self.runs]
        outcomes = self.stack.gradients(requests)
        return [
            run.finish(request.step, outcome)
            for run, request, outcome in zip(self.runs, requests, outcomes, strict=True)
        ]

    @property
    def logs_next(self) -> bool:
        return (self.runs[0].state.step + 1) % EVERY == 0

    def estimate(self) -> int:
        """Bytes that `run.stack=auto` expects."""
        return sum(memory_bytes(config, self.corpus.vocab_size) for config in self.configs)


def measure(words: list[str], number: int, device: torch.device, runs_dir: Path) -> Row:
    """The figures of one case; `runs_dir` as for `Arms`."""
    arms = Arms(words, number, device, runs_dir)
    for _ in range(3):
        wait(arms.step())
    row: dict[str, str | int | float | None] = {"settings": " ".join(words), "arms": number}
    row["experts"] = arms.kernels.experts
    with Operations() as operations:
        wait(arms.step())
    row["operations"] = operations.number
    row["ms"] = 1e3 * statistics.median(_seconds(arms.step) for _ in range(TIMED))
    if device.type == "cuda":
        row |= profiled(arms.step)
        while not arms.logs_next:
            wait(arms.step())
        logged = profiled(arms.step)
        row |= {f"{name}, logged": logged[name] for name in ("kernels", "waits")}
        peak = torch.cuda.max_memory_allocated() - arms.before
        row |= {"peak MB": peak / 1e6, "estimate MB": arms.estimate() / 1e6}
        row["peak / estimate"] = peak / arms.estimate()
    return row


def profiled(step: Callable[[], list[Event]]) -> dict[str, int | float]:
    """What the profiler sees of a step on a GPU: the calls of the CPU, and the kernels' time."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        with record_function(REGION):
            events = step()
        torch.cuda.synchronize()
    wait(events)
    seen = profiler.events() or []
    [region] = [e for e in seen if e.name == REGION and e.device_type.name == "CPU"]
    start, end = region.time_range.start, region.time_range.end
    calls = [
        event.name
        for event in seen
        if event.device_type.name == "CPU" and start <= event.time_range.start <= end
    ]
    computing = sum(
        event.time_range.elapsed_us()
        for event in seen
        if event.device_type.name == "CUDA" and not event.is_user_annotation
    )
    return {
        "kernels": sum(name.startswith("cu") and "Launch" in name for name in calls),
        "copies": sum(name.startswith(("cudaMemcpy", "cudaMemset")) for name in calls),
        "waits": sum(name.startswith("cuda") and "Synchronize" in name for name in calls),
        "GPU ms": computing / 1e3,
    }


def wait(events: list[Event]) -> None:
    for event in events:
        event.wait()


def _seconds(step: Callable[[], list[Event]]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    events = step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    took = time.perf_counter() - began
    wait(events)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description="Launches, waits and memory of a training step.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="tiny cases, for tests")
    args = parser.parse_args()
    device = device_here()
    if not args.json:
        print(header(torch.get_num_threads()))
    rows, failed = [], []
    runs_dir = Path(tempfile.mkdtemp())
    for words, arms in SMOKE if args.smoke else CASES:
        print(f"{' '.join(words)}, {arms} arms", file=sys.stderr)
        try:
            rows.append(measure(words, arms, device, runs_dir))
        except Exception as error:  # the other cases are measured
            failed.append({"settings": " ".join(words), "arms": arms, "failed": reason(error)})
        if device.type == "cuda":
            torch.cuda.empty_cache()
    shutil.rmtree(runs_dir)
    show({"Steps": rows, **({"Failed": failed} if failed else {})}, as_json=args.json)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()

"""A whole study against its runs one by one, and processes against threads on a CPU.

The first part times training steps on the shapes of `race.py`: one process of one thread per core,
each with its own arm, against one process with all threads. The second part times whole commands on
prepared data: `moebench sweep` against one `moebench train` per run, each with all threads of the
CPU or with the GPU. Both ways measure the peak speed of the device again, in their own folder. The
script uses wall time, so nothing else may run at the same time.

    python benchmarks/study.py [--seconds 20] [--steps 100] [--rounds 3] [--skip-threads] [--smoke]
"""

import argparse
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier

import torch
from shapes import SHAPES, moebench_step
from tables import at_least_one
from timing import device_here, header

from moebench.machine import usable_cores

MOEBENCH = (sys.executable, "-m", "moebench.cli")
PATIENCE = 120  # seconds that processes wait for each other
SCOPES, SEEDS = ("none", "micro", "global"), ("0", "1")


def throughput(shape: str, processes: int, threads: int, seconds: float) -> float:
    """Tokens per second of wall time, over all processes."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(processes, timeout=PATIENCE)
    with ProcessPoolExecutor(processes, context, _begin, (ready,)) as pool:
        work = [pool.submit(_steps, shape, threads, seconds) for _ in range(processes)]
        return sum(process.result() for process in work)


def _begin(ready: Barrier) -> None:
    global _ready
    _ready = ready


def _steps(shape: str, threads: int, seconds: float) -> float:
    torch.set_num_threads(threads)
    act = moebench_step(SHAPES[shape], torch.float32, torch.device("cpu"))
    act()
    act()
    _ready.wait()
    began, number = time.perf_counter(), 0
    while (took := time.perf_counter() - began) < seconds:
        act()
        number += 1
    # keep the machine equally busy until all processes have finished counting
    _ready.wait(seconds + PATIENCE)
    return number * SHAPES[shape].tokens / took


def commands(steps: int, device: str, cores: int) -> dict[str, list[list[str]]]:
    """The commands of each way to train all runs."""
    common = ["model=tiny", "global_bsz=32", f"train.steps={steps}", "data=synthetic"]
    common += [f"run.device={device}", "data.valid_sequences=64"]
    arms = [[f"scope={scope}", f"seed={seed}"] for scope in SCOPES for seed in SEEDS]
    alone = [[*MOEBENCH, "train", *arm, *common, f"run.threads={cores}"] for arm in arms]
    every = [f"scope={','.join(SCOPES)}", f"seed={','.join(SEEDS)}"]
    return {"one by one": alone, "moebench sweep": [[*MOEBENCH, "sweep", *every, *common]]}


def seconds(words: list[list[str]]) -> float:
    """Wall time in seconds of these commands, in a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        for command in words:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description="A whole study against its runs one by one.")
    parser.add_argument("--seconds", type=float, default=20, help="seconds per shape")
    parser.add_argument("--steps", type=int, default=100, help="steps of each run")
    parser.add_argument("--rounds", type=at_least_one, default=3)
    parser.add_argument("--skip-threads", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="as short as possible, for tests")
    args = parser.parse_args()
    if args.smoke:
        args.seconds, args.steps, args.rounds = 0.1, 1, 1
    cores, device = usable_cores(), device_here()
    print(f"{header(cores)}, {args.rounds} rounds")
    if not args.skip_threads:
        print(f"\n| shape, fp32 | {cores} processes of 1 thread, tokens/s | 1 of {cores} | ratio |")
        print("|---|---:|---:|---:|")
        for shape in ("D",) if args.smoke else ("A", "D"):
            pairs = [
                [throughput(shape, *split, args.seconds) for split in ((cores, 1), (1, cores))]
                for _ in range(args.rounds)
            ]
            many, one = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(a / b for a, b in pairs)
            print(f"| {shape} | {many:,.0f} | {one:,.0f} | {ratio:.2f} |", flush=True)
    ways = commands(args.steps, device.type, cores)
    for words in ways.values():  # prepare the data and fill the file cache
        seconds([[word.replace(f"steps={args.steps}", "steps=1") for word in words[0]]])
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(args.rounds):
        for way, words in list(ways.items())[:: 1 if number % 2 else -1]:
            print(f"study: round {number + 1} of {args.rounds}, {way}", file=sys.stderr)
            times[way].append(seconds(words))
    number = len(SCOPES) * len(SEEDS)
    print(f"\n| {number} runs of {args.steps} steps | seconds | against one by one |")
    print("|---|---:|---:|")
    for way, taken in times.items():
        ratio = statistics.median(a / b for a, b in zip(times["one by one"], taken, strict=True))
        print(f"| {way} | {statistics.median(taken):.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()

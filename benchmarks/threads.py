"""Small steps by one thread and by all, on an idle machine and beside one busy process.

Where threads wait for each other, and for the cores, decides how many a run takes by default
(`run.threads`): each gets so many FLOPs of an expert's product. The rows are sizes of that product.
Windows of steps by one thread and by all take turns. Wall time, so nothing else may run.

    python benchmarks/threads.py [--seconds 2] [--rounds 3] [--smoke]
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tables import Row, at_least_one, markdown

from moebench.config.compose import Composer
from moebench.config.cost import product_flops
from moebench.machine import begin_process, usable_cores

SIZES = (
    "model=smoke",
    "model=tiny model.d_model=64 model.num_layers=2 model.num_experts=52",
    "model=tiny model.d_model=64",
    "model=tiny",
    "model=tiny model.d_model=256 model.num_layers=4",
    "model=small",
)
COMMON = ("global_bsz=32", "run.device=cpu")
VOCABULARY = 256  # bytes
BUSY = "while True: pass"

Step = Callable[[], object]


def step_seconds(step: Step, threads: int, window: float) -> float:
    """Wall seconds of a step, the mean of those in a window of about so many seconds."""
    import torch

    torch.set_num_threads(threads)
    step()
    began, number, took = time.perf_counter(), 0, 0.0
    while not number or took < window:
        step()
        number, took = number + 1, time.perf_counter() - began
    return took / number


@contextmanager
def busy() -> Iterator[None]:
    """One other process that never waits."""
    with subprocess.Popen([sys.executable, "-c", BUSY]) as process:
        try:
            yield
        finally:
            process.kill()


def row(words: str, cores: int, window: float, rounds: int) -> Row:
    from shapes import random_tokens, step_of

    from moebench.experiment.execution import suited_threads
    from moebench.train.build import make_model
    from moebench.train.ranks import Ranks

    config = Composer().compose([*words.split(), *COMMON])
    inputs = random_tokens(VOCABULARY, config.global_bsz, config.seq_len)
    step, tokens = step_of(make_model(config, VOCABULARY), inputs), inputs[:, 1:].numel()

    def measured(beside: str) -> dict[str, float]:
        pairs = [[step_seconds(step, n, window) for n in (1, cores)] for _ in range(rounds)]
        one, every = (tokens / statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        return {
            f"1 thread{beside}": one,
            f"{cores} threads{beside}": every,
            f"ratio{beside}": ratio,
        }

    idle = measured("")
    with busy():
        beside = measured(", beside one")
    flops = product_flops(config, config.global_bsz) / 1e6
    default = suited_threads(config, Ranks())
    return {"size": f"`{words}`", "MFLOP": flops, **idle, **beside, "default": default}


def main() -> None:
    parser = argparse.ArgumentParser(description="Small steps by one thread and by all.")
    parser.add_argument("--seconds", type=float, default=2, help="of each window")
    parser.add_argument("--rounds", type=at_least_one, default=3)
    parser.add_argument("--smoke", action="store_true", help="as short as possible, for tests")
    args = parser.parse_args()
    sizes = SIZES
    if args.smoke:
        args.seconds, args.rounds, sizes = 0.01, 1, SIZES[:3]
    begin_process()  # before torch starts threads, whose waiting it sets
    from timing import header

    cores = usable_cores()
    print(f"{header(cores)}, {args.rounds} rounds, tokens/s of {' '.join(COMMON)}", flush=True)
    rows: list[Row] = []
    for words in sizes:
        print(f"threads: {words}", file=sys.stderr)
        rows.append(row(words, cores, args.seconds, args.rounds))
    print("\nMFLOP: of the smaller product of an expert; beside one: a process that never waits\n")
    print(markdown(rows))


if __name__ == "__main__":
    main()

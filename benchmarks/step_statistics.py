"""The cost of a step's statistics relative to the step: the target is at most 1 %.

Times a complete training step (passes, clipping, optimizer), the statistics of every step (the
recent loads), and the statistics of a logged step (its whole row). The script uses process time, so
that other processes do not count. Step and statistics take turns, and the median of the paired
ratios is printed. With `run.log_every=N`, a run pays the first in every step and the second in one
step of N.

    python benchmarks/step_statistics.py [--model tiny] [--rounds N] [--log-every N]
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from tables import at_least_one
from timing import header, timed

from moebench.balance import Estimator, Global, Term
from moebench.config.compose import Composer
from moebench.train.build import make_state
from moebench.train.gradients import accumulate_gradients
from moebench.train.measure import recent_load, step_metrics
from moebench.train.step import Objective, Step

CPU = torch.device("cpu")


def cpu_seconds(act: Callable[[], Any]) -> tuple[float, Any]:
    made: list[Any] = []
    return timed(lambda: made.append(act()), CPU).own, made[0]


def main() -> None:
    parser = argparse.ArgumentParser(description="The cost of a step's statistics.")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--rounds", type=at_least_one, default=15)
    parser.add_argument("--log-every", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = Composer().compose([f"model={args.model}", "global_bsz=32", "data=synthetic"])
    state = make_state(config, 256, CPU)
    objective = Objective((Term(Global(), 0.05),), config.micro_bsz, estimator=Estimator())
    generator = torch.Generator().manual_seed(0)
    shape = (config.global_bsz, config.seq_len + 1)
    step = Step(torch.randint(0, 255, shape, generator=generator), config.global_bsz)

    def train() -> Any:
        state.optimizer.zero_grad()
        outcome = accumulate_gradients(state.model, objective, step)
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
        state.optimizer.step()
        return outcome

    def measure(outcome: Any) -> Any:
        return step_metrics(outcome, objective, before=state.load, assignment_bytes=4)()

    always, logged, whole = [], [], []
    for number in range(args.rounds + 2):
        took, outcome = cpu_seconds(train)
        measure(outcome)  # refills the caches after the step
        keeping, load = cpu_seconds(lambda outcome=outcome: recent_load(state.load, outcome))
        state.load = load
        row, _ = cpu_seconds(lambda outcome=outcome: measure(outcome))
        if number >= 2:
            whole.append(took)
            always.append(keeping / took)
            logged.append(row / took)
    every, one = statistics.median(always), statistics.median(logged)
    print(f"{header(1)}, model={args.model}, {args.rounds} rounds")
    print(f"{'step, process time':28}{statistics.median(whole):9.4f} s")
    print(f"{'statistics of every step':28}{every:9.3%} of a step")
    print(f"{'row of a logged step':28}{one:9.3%} of a step")
    average = every + one / args.log_every
    print(f"{f'with run.log_every={args.log_every}':28}{average:9.3%} of a step")


if __name__ == "__main__":
    main()

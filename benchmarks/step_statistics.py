"""What a step's statistics take beside the step itself: at most one hundredth.

A training step is made whole (passes, clipping, optimizer), then what is kept of every step (the
recent loads) and what a logged step adds (all of its row). Process CPU time, so that other
processes do not count; the statistics and the step take turns, and the median of the paired ratios
counts. With `run.log_every=N`, a run pays the first on every step and the second on one of N.

    python benchmarks/step_statistics.py [--model tiny] [--rounds N] [--log-every N]
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
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
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--log-every", type=int, default=10)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    config = Composer().compose([f"model={asked.model}", "global_bsz=32", "data=synthetic"])
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

    def look(outcome: Any) -> Any:
        return step_metrics(outcome, objective, before=state.load, assignment_bytes=4)()

    always, logged, whole = [], [], []
    for number in range(asked.rounds + 2):
        took, outcome = cpu_seconds(train)
        look(outcome)  # warms up what a long step has pushed out of the caches
        keeping, load = cpu_seconds(lambda made=outcome: recent_load(state.load, made))
        state.load = load
        row, _ = cpu_seconds(lambda made=outcome: look(made))
        if number >= 2:
            whole.append(took)
            always.append(keeping / took)
            logged.append(row / took)
    every, one = statistics.median(always), statistics.median(logged)
    print(f"{header(1)}, model={asked.model}, {asked.rounds} rounds")
    print(f"{'a step, CPU':28}{statistics.median(whole):9.4f} s")
    print(f"{'kept of every step':28}{every:9.3%} of it")
    print(f"{'row of a logged step':28}{one:9.3%} of it")
    print(f"{f'with run.log_every={asked.log_every}':28}{every + one / asked.log_every:9.3%} of it")


if __name__ == "__main__":
    main()

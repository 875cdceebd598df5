"""What share of a training step its batch takes, target below 1 %.

    .venv/bin/python benchmarks/loader.py [--threads 1] [--rounds 15] [KEY=VALUE ...]

Times `Feed`, which the training loop gets its batches from, against the whole of the step's
gradients and update on the same batch, in turn; prints medians. On a GPU both with the tokens in
its memory and without.
"""

import argparse
import platform
import statistics
import time
from functools import partial

import torch

from moebench.config.compose import Composer
from moebench.data.batches import make_batches
from moebench.data.corpus import prepare
from moebench.train.feed import Feed
from moebench.train.loop import make_objective, make_state
from moebench.train.step import Step, accumulate_gradients


def seconds(act, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    act()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    config = Composer().compose(asked.overrides)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    corpus = prepare(config.data)
    batches = make_batches(corpus, config)
    state = make_state(config, corpus.vocab_size, device)
    objective = make_objective(config, corpus.domains)
    device_bsz = config.run.device_bsz or config.global_bsz
    where = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    print(f"torch {torch.__version__}, {where}, {asked.threads} threads, {asked.rounds} rounds")
    print(f"{config.global_bsz} x {config.seq_len} tokens, {len(corpus.domains)} domains")
    print(f"{'tokens lie':12} {'batch ms':>10} {'step ms':>10} {'share':>8}")
    for resident in (False, True) if device.type == "cuda" else (False,):
        feed = Feed(batches, device, resident=resident)
        loading, stepping = [], []
        for step in range(1, asked.rounds + 2):
            loading.append(seconds(partial(feed, step), device))
            tokens, domain = feed(step)

            def update(tokens=tokens, domain=domain) -> None:
                state.optimizer.zero_grad()
                one = Step(tokens, device_bsz, domain=domain)
                accumulate_gradients(state.model, objective, one)
                state.optimizer.step()

            stepping.append(seconds(update, device))
        # the first round also warms up
        batch, step = (1e3 * statistics.median(each[1:]) for each in (loading, stepping))
        place = "on the GPU" if resident else "on the CPU"
        print(f"{place:12} {batch:10.3f} {step:10.1f} {batch / (batch + step):8.2%}")


if __name__ == "__main__":
    main()

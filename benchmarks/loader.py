"""The share of a training step spent on its batch; the target is below 1 %.

    python benchmarks/loader.py [--threads 1] [--rounds 15] [KEY=VALUE ...]

Times `Feed`, which provides the batches of the training loop, against gradients and update of the
step on the same batch. The two take turns, and medians are printed. On a GPU, the script measures
with and without the tokens in GPU memory.
"""

import argparse
import statistics
from functools import partial

import torch
from tables import at_least_one
from timing import device_here, header, timed

from moebench.config.compose import Composer
from moebench.data.batches import make_batches
from moebench.data.corpus import prepare
from moebench.train.build import make_objective, make_state
from moebench.train.feed import Feed
from moebench.train.gradients import accumulate_gradients
from moebench.train.step import Step


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=at_least_one, default=15)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = Composer().compose(args.overrides)
    device = device_here()
    corpus = prepare(config.data)
    batches = make_batches(corpus, config)
    state = make_state(config, corpus.vocab_size, device)
    objective = make_objective(config, corpus.domains)
    device_bsz = config.run.device_bsz or config.global_bsz
    print(f"{header(args.threads)}, {args.rounds} rounds")
    print(f"{config.global_bsz} x {config.seq_len} tokens, {len(corpus.domains)} domains")
    print(f"{'tokens':12} {'batch ms':>10} {'step ms':>10} {'share':>8}")
    for resident in (False, True) if device.type == "cuda" else (False,):
        feed = Feed(batches, device, resident=resident)
        loading, stepping = [], []
        for step in range(1, args.rounds + 2):
            loading.append(timed(partial(feed, step), device).wall)
            tokens, domain = feed(step)

            def update(tokens=tokens, domain=domain) -> None:
                state.optimizer.zero_grad()
                one = Step(tokens, device_bsz, domain=domain)
                accumulate_gradients(state.model, objective, one)
                state.optimizer.step()

            stepping.append(timed(update, device).wall)
        # the first round also warms up
        batch, step = (1e3 * statistics.median(times[1:]) for times in (loading, stepping))
        place = "on the GPU" if resident else "on the CPU"
        print(f"{place:12} {batch:10.3f} {step:10.1f} {batch / (batch + step):8.2%}")


if __name__ == "__main__":
    main()

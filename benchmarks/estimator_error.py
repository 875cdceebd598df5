"""The error of each estimator's router gradient against the exact one, on text.

A model trains with exact global balance. In some steps, each estimator computes the gradient that
it would have given for the same weights and the same step. These gradients are not used for
training, so all estimators are compared along one run. Micro balance, which is not an estimator, is
shown for comparison.

    python benchmarks/estimator_error.py [DATA] [--after N ...] [--steps N] [--threads N]
"""

import argparse
import statistics
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from moebench.balance import BalanceState, Estimator, Global, Micro, Scope, balance_loss
from moebench.config.compose import Composer
from moebench.data.batches import make_batches
from moebench.data.corpus import Corpus, prepare
from moebench.model.transformer import MoETransformer
from moebench.train.build import make_objective, make_state
from moebench.train.gradients import Distance, estimator_error
from moebench.train.loop import train
from moebench.train.step import Objective, Step

MICRO_BSZ, GLOBAL_BSZ = 4, 32
ESTIMATORS = {
    **{
        f"buffer, {passes} passes": Estimator("buffer", pass_bsz=GLOBAL_BSZ // passes)
        for passes in (2, 4, 8)
    },
    "window of 4 steps": Estimator(window_steps=4),
    "stale": Estimator("stale"),
    "ema 0.9": Estimator("ema", decay=0.9),
}
MICRO = "(micro)"


def overrides(path: str | None) -> list[str]:
    return [
        *("model=tiny", "scope=global", "loss.balance=0.1", "train.steps=400"),
        *(f"global_bsz={GLOBAL_BSZ}", f"micro_bsz={MICRO_BSZ}", "data.valid_sequences=1"),
        *(["data=folder", f"data.path={path}"] if path else []),
    ]


def to_come(
    words: list[str], corpus: Corpus, last: int
) -> Iterator[tuple[MoETransformer, Objective, Step]]:
    """Yield the model before each of the first steps of a run, its objective, and the step."""
    config = Composer().compose(words)
    device = torch.device("cpu")
    state = make_state(config, corpus.vocab_size, device)
    objective = make_objective(config, corpus.domains)
    batches = make_batches(corpus, config)
    for event in train(config, corpus, state, device):
        if event.step == last:
            return
        batch = batches.batch(event.step + 1)
        tokens, domain = torch.from_numpy(batch.tokens), torch.from_numpy(batch.domain)
        yield state.model, objective, Step(tokens, len(tokens), event.step + 1, domain)


def scope_error(model: MoETransformer, step: Step, scope: Scope) -> Distance:
    """The error of a scope's balance gradient against that of the whole step."""
    routing = model(step.tokens[:, :-1])[1]
    weights = [
        weight for name, weight in model.named_parameters() if name.endswith("router.weight")
    ]

    def gradient(over: Scope) -> Tensor:
        loss = balance_loss(over.frequency(routing), routing.prob_mass)
        gradients = torch.autograd.grad(loss, weights, retain_graph=True)
        return torch.cat([part.flatten() for part in gradients]).double()

    g, best = gradient(scope), gradient(Global())
    size = best.norm()
    return Distance(float((g - best).norm() / size), float(g @ best / (g.norm() * size)))


def main() -> None:
    parser = argparse.ArgumentParser(description="The error of each estimator's router gradient.")
    parser.add_argument("data", nargs="?", help="a folder, as data.path; default: data=installed")
    parser.add_argument("--after", type=int, nargs="+", default=[1, 50, 200], help="steps trained")
    parser.add_argument("--steps", type=int, default=6, help="steps to measure after each")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if min(args.after) < 1:
        parser.error("--after: must be at least 1, because stale needs a previous step")
    torch.set_num_threads(args.threads)
    words = overrides(args.data)
    corpus = prepare(Composer().compose(words).data)
    known = f"{len(corpus.domains)} domains, content {corpus.content_hash[:10]}"
    print(f"torch {torch.__version__}, {known}")
    print(f"{GLOBAL_BSZ} sequences per step, micro-batches of {MICRO_BSZ}")
    print(f"relative error and cosine, means over {args.steps} steps\n")

    states: dict[str, BalanceState] = {}
    errors: dict[tuple[str, int], list[Distance]] = {}
    for model, objective, step in to_come(words, corpus, max(args.after) + args.steps):
        layers, experts = model.router_shape
        done = step.number - 1
        [after] = [start for start in args.after if start <= done < start + args.steps] or [None]
        with torch.no_grad():
            counts = model(step.tokens[:, :-1])[1].counts.sum(1, keepdim=True)
        if after is not None:
            print(f"measuring before step {step.number}", file=sys.stderr)
            errors.setdefault((MICRO, after), []).append(scope_error(model, step, Micro(MICRO_BSZ)))
        for name, estimator in ESTIMATORS.items():
            state = states.setdefault(name, estimator.begin(layers, 1, experts))
            if after is not None:
                one = Objective(objective.terms, MICRO_BSZ, estimator=estimator)
                carried = [state if estimator.carries else None]
                error = estimator_error(model, one, step, carried)
                errors.setdefault((name, after), []).append(error)
            states[name] = estimator.update(state, counts)

    print(f"{'steps trained':20}" + "".join(f"{after:>16}" for after in args.after))
    for name in (*ESTIMATORS, MICRO):
        cells = [
            [statistics.mean(column) for column in zip(*errors[name, after], strict=True)]
            for after in args.after
        ]
        print(f"{name:20}" + "".join(f"{error:9.3f}{cosine:7.3f}" for error, cosine in cells))


if __name__ == "__main__":
    main()

"""How long a training step and an evaluation take on this machine, timed for a few seconds.

Nothing is written but a temporary folder. What is timed is one process that does what a job does:
nothing else of a sweep runs meanwhile, so several processes at a time are slower each.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

from moebench.config.schema import ExperimentConfig
from moebench.data.corpus import Corpus

if TYPE_CHECKING:
    import torch

    from moebench.train.loop import TrainingRun

MOST_STEPS = 7  # timed of one shape; more tell little
LEAST_STEPS = 2


class Calibration(NamedTuple):
    """Seconds of one process that trains a run, or a stack of runs, of one shape.

    Attributes:
        start: until the first step, without the start of Python.
        evaluation: of all runs of the stack.
        steps: of each timed step of the stack.
    """

    start: float
    evaluation: float
    steps: tuple[float, ...]


def calibrate(
    configs: Sequence[ExperimentConfig],
    corpus: Corpus,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Calibration:
    """Time a run, or a stack of runs, for about so many seconds, and at least one step.

    Runs are timed without compilation. If the first step takes all of the seconds, an evaluation is
    not timed, but guessed by its FLOPs.

    Args:
        configs: of equal `stackable.stack_key`.
        seconds: after which no further step begins.
        clock: `time.process_time` leaves out what other programs take, on a CPU.
    """
    import torch

    from moebench.experiment.execution import device_kind
    from moebench.train.stack import GradientRequest, Stack

    began = clock()
    configs = list(map(_endless, configs))
    device = torch.device(device_kind(configs[0].run))
    threads = torch.get_num_threads()
    torch.set_num_threads(configs[0].run.threads or 1)
    try:
        runs = [_run(config, corpus, device) for config in configs]
        prepared = clock()
        stack = Stack([run.state.model for run in runs])

        def step() -> float:
            start = clock()
            requests = [GradientRequest(run, run.next_step()) for run in runs]
            outcomes = stack.update(requests, stack.gradients(requests))
            for request, outcome in zip(requests, outcomes, strict=True):
                request.run.finish(request.step, outcome).wait()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return clock() - start

        times = [step()]  # it warms up
        evaluation = times[0] * _evaluated(configs[0], corpus)
        if clock() - began < seconds:
            start = clock()
            runs[0].begin()
            evaluation = (clock() - start) * len(runs)
            times = [step() for _ in range(LEAST_STEPS)]
        while clock() - began < seconds and LEAST_STEPS <= len(times) < MOST_STEPS:
            times.append(step())
    finally:
        torch.set_num_threads(threads)
    return Calibration(prepared - began, evaluation, tuple(times))


def _run(config: ExperimentConfig, corpus: Corpus, device: "torch.device") -> "TrainingRun":
    from moebench.train.build import make_state
    from moebench.train.kernels import apply, choose
    from moebench.train.loop import TrainingRun

    state = make_state(config, corpus.vocab_size, device, len(corpus.domains))
    with TemporaryDirectory() as folder:
        apply(choose(config, corpus.vocab_size, Path(folder), device), state.model)
    return TrainingRun(config, corpus, state, device)


def _evaluated(config: ExperimentConfig, corpus: Corpus) -> float:
    """The FLOPs of an evaluation as a multiple of those of a step."""
    sequences = 2 * len(corpus.domains) * config.data.valid_sequences
    return sequences / (3 * config.global_bsz)


def _endless(config: ExperimentConfig) -> ExperimentConfig:
    """The config of a run that evaluates at no step that is timed, and is not compiled.

    The machine that trains it may have a GPU, and this one none. Its weights stay finite.
    """
    optim = replace(config.optim, lr=min(config.optim.lr, 1e-9))
    loss = replace(config.loss, balance=min(config.loss.balance, 1), z=min(config.loss.z, 1))
    train = replace(config.train, steps=10**9, eval_every=0)
    device = "cpu" if config.run.device == "cpu" else "auto"
    threads = config.run.threads or 1
    run = replace(config.run, threads=threads, compile="false", device=device, experts="auto")
    return replace(config, train=train, run=run, optim=optim, loss=loss)

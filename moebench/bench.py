"""How fast this machine trains: arms timed by themselves, in turn, with nothing recorded.

Arms take turns in one process, step by step, and are compared by the median of their paired ratios,
so that a machine that slows down slows all of them. A timing that a run takes of itself beside
others means nothing; this one fills the cost columns of a report.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from moebench.config.cost import training_flops
from moebench.config.schema import ExperimentConfig
from moebench.data.corpus import Corpus, prepare
from moebench.train.build import make_state
from moebench.train.gradients import accumulate_gradients, routing_of
from moebench.train.kernels import Kernels, apply, choose
from moebench.train.loop import TrainingRun
from moebench.train.measure import step_metrics
from moebench.train.share import ArmStep
from moebench.train.step import Objective, Outcome, Step

ROUNDS = 9  # steps of each arm that count, unless it is said


@dataclass(frozen=True)
class Timing:
    """What a step of an arm takes.

    Attributes:
        step_seconds: of the clock, of each step.
        counting_seconds: of it, the counting pass of `exact`, timed apart; none where none is made.
        cpu_seconds: of the process, a step, the median.
        ratio: step_seconds over those of the first arm, the median of the pairs.
        tokens_per_second: target tokens.
        mfu: share of what the device's matrix products reach; counts no counting pass.
        loading, balancing, statistics: shares of a step: of its batch, of balance loss and counting
            pass together, and of a logged row.
        peak_bytes: most memory that a GPU gave; None on a CPU, where it cannot be parted.
    """

    step_seconds: list[float]
    counting_seconds: list[float]
    cpu_seconds: float
    ratio: float
    tokens_per_second: float
    mfu: float
    loading: float
    balancing: float
    statistics: float
    peak_bytes: int | None


class _Entrant:
    """An arm that is timed: its batch, its step, the same without balancing, and its statistics."""

    def __init__(
        self, config: ExperimentConfig, corpus: Corpus, device: torch.device, kernels: Kernels
    ) -> None:
        self.config, self.device = config, device
        state = make_state(config, corpus.vocab_size, device)
        apply(kernels, state.model)
        self.arm = TrainingRun(config, corpus, state, device)
        self.step: Step = self.arm.next_step()
        self.bare = replace(self.arm.objective, terms=(), z=0.0)
        self.outcome: Outcome = self._gradients(self.arm.objective)
        self.arm.finish(self.step, self.outcome)
        self.of_token = training_flops(config, corpus.vocab_size) / kernels.peak_flops
        self.counts = self._share().counting
        self.times: dict[str, list[float]] = {}

    def _gradients(self, objective: Objective) -> Outcome:
        state = self.arm.state
        states = state.balance if objective is self.arm.objective else None
        return accumulate_gradients(state.model, objective, self.step, states)

    def _load(self) -> None:
        self.step = self.arm.next_step()

    def _train(self) -> None:
        self.outcome = self._gradients(self.arm.objective)
        self.arm.state.optimizer.step()
        self.arm.state.optimizer.zero_grad()

    def _without(self) -> None:
        self._gradients(self.bare)
        self.arm.state.optimizer.zero_grad()

    @torch.no_grad()
    def _count(self) -> None:
        share = self._share()
        for own in self.step.passes():
            share.count(routing_of(self.arm.state.model, share.inputs(own)), own)

    def _share(self) -> ArmStep:
        return ArmStep(self.arm.objective, self.step, self.arm.state.balance or [])

    def _statistics(self) -> None:
        step_metrics(self.outcome, self.arm.objective)()

    def round(self) -> None:
        """Time each part once."""
        self._time("loading", self._load)
        cpu = time.process_time()
        self._time("training", self._train)
        self.times.setdefault("cpu", []).append(time.process_time() - cpu)
        self._time("gradients", lambda: self._gradients(self.arm.objective))
        self.arm.state.optimizer.zero_grad()
        self._time("bare", self._without)
        if self.counts:
            self._time("counting", self._count)
        self._time("statistics", self._statistics)

    def _time(self, name: str, act: Callable[[], object]) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        began = time.perf_counter()
        act()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.times.setdefault(name, []).append(time.perf_counter() - began)


def race(
    configs: Sequence[ExperimentConfig],
    corpora: Sequence[Corpus],
    device: torch.device,
    kernels: Sequence[Kernels],
    rounds: int,
) -> Iterator[list[Timing]]:
    """Time a step of each arm, in turn; yields what is known after each round.

    Args:
        configs: with `run.threads` resolved, the same for all.
        kernels: of each.
    """
    field = [
        _Entrant(config, corpus, device, chosen)
        for config, corpus, chosen in zip(configs, corpora, kernels, strict=True)
    ]
    for _ in range(rounds):
        for each in field:
            each.round()
        yield [_timing(each, field[0]) for each in field]


def _timing(own: _Entrant, first: _Entrant) -> Timing:
    times, tokens = own.times, own.config.global_bsz * own.config.seq_len
    seconds = statistics.median(times["training"])

    def share(part: Sequence[float]) -> float:
        pairs = zip(part, times["training"], times["loading"], strict=True)
        return statistics.median(each / (step + load) for each, step, load in pairs)

    extra = [a - b for a, b in zip(times["gradients"], times["bare"], strict=True)]
    return Timing(
        step_seconds=times["training"],
        counting_seconds=times.get("counting", []),
        cpu_seconds=statistics.median(times["cpu"]),
        ratio=statistics.median(
            a / b for a, b in zip(times["training"], first.times["training"], strict=True)
        ),
        tokens_per_second=tokens / seconds,
        mfu=own.of_token * tokens / seconds,
        loading=share(times["loading"]),
        balancing=max(0.0, share(extra)),
        statistics=share(times["statistics"]),
        peak_bytes=torch.cuda.max_memory_allocated(own.device)
        if own.device.type == "cuda"
        else None,
    )


def machine_of(config: ExperimentConfig) -> str:
    """What arms are timed on, in words."""
    if (device := device_of(config)).type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    threads = config.run.threads or 1
    return f"{threads} thread{'s' * (threads > 1)} of a CPU, torch {torch.__version__}"


def device_of(config: ExperimentConfig) -> torch.device:
    cuda = torch.cuda.is_available() and config.run.device != "cpu"
    return torch.device("cuda" if cuda else "cpu")


def time_arms(
    configs: Sequence[ExperimentConfig],
    runs_dir: Path,
    rounds: int,
    progress: Callable[[str], None],
) -> Iterator[list[Timing]]:
    """`race` between configs on this machine's device, one thread each unless they say otherwise.

    The kernels are those of the runs in `runs_dir`.
    """
    device = device_of(configs[0])
    threads = configs[0].run.threads or 1
    torch.set_num_threads(threads)
    resolved = [
        replace(each, run=replace(each.run, threads=threads, device=device.type))
        for each in configs
    ]
    corpora = [prepare(each.data, progress=progress) for each in resolved]
    kernels = [
        choose(config, corpus.vocab_size, runs_dir, device)
        for config, corpus in zip(resolved, corpora, strict=True)
    ]
    yield from race(resolved, corpora, device, kernels, rounds)

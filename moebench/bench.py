"""The speed of training steps on this machine: arms timed in turn, with nothing recorded.

Arms take turns in one process, step by step, and are compared by the median of their paired ratios.
So a machine that slows down slows all arms alike. The cost columns of a report come from these
times, because what a run measures beside other runs means nothing.
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
from moebench.experiment.execution import check_threads, device_kind
from moebench.train.build import make_state
from moebench.train.gradients import accumulate_gradients, routing_of
from moebench.train.kernels import Kernels, apply, choose
from moebench.train.loop import TrainingRun
from moebench.train.measure import step_metrics
from moebench.train.share import ArmStep
from moebench.train.step import Objective, Outcome, Step

ROUNDS = 9  # measured steps per arm, by default


@dataclass(frozen=True)
class Timing:
    """What a training step of an arm costs.

    Attributes:
        step_seconds: wall-clock seconds of each step.
        counting_seconds: the part of it that the counting pass of the `exact` estimator takes,
            timed apart; empty if the arm needs no such pass.
        cpu_seconds: process time of a step, the median.
        ratio: `step_seconds` over those of the first arm, the median of the pairs.
        tokens_per_second: target tokens.
        mfu: share of the device's peak in matrix products; without the counting pass.
        loading: share of a step that loading its batch takes.
        balancing: share that the balance loss and the counting pass take.
        statistics: share that the metrics of a logged row take.
        peak_bytes: peak memory on a GPU; None on a CPU, where arms share one process.
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


class _TimedArm:
    """An arm, and the times of the parts of its steps.

    Attributes:
        times: seconds of each round, by part.
    """

    def __init__(
        self, config: ExperimentConfig, corpus: Corpus, device: torch.device, kernels: Kernels
    ) -> None:
        self.config, self.device = config, device
        self.state = make_state(config, corpus.vocab_size, device, len(corpus.domains))
        apply(kernels, self.state.model)
        self.run = TrainingRun(config, corpus, self.state, device)
        self.objective = self.run.objective
        self.without_balancing = replace(self.objective, terms=(), z=0.0)
        self.step: Step = self.run.next_step()
        self.outcome: Outcome = self._gradients(self.objective)  # also warms up
        self.run.finish(self.step, self.outcome)
        self.flops_share = training_flops(config, corpus.vocab_size) / kernels.peak_flops
        self.counts_first = self._arm_step().counting
        self.times: dict[str, list[float]] = {}

    def time_round(self) -> None:
        """Time each part once."""
        self._time("loading", self._load)
        cpu = time.process_time()
        self._time("training", self._train)
        self.times.setdefault("cpu", []).append(time.process_time() - cpu)
        self._time("gradients", lambda: self._gradients(self.objective))
        self.state.optimizer.zero_grad()
        self._time("without balancing", lambda: self._gradients(self.without_balancing))
        self.state.optimizer.zero_grad()
        if self.counts_first:
            self._time("counting", self._count)
        self._time("statistics", lambda: step_metrics(self.outcome, self.objective)())

    def timing(self, first: "_TimedArm") -> Timing:
        """The medians over all rounds so far, with `first` as the arm to compare with."""
        times, tokens = self.times, self.config.global_bsz * self.config.seq_len
        seconds = statistics.median(times["training"])
        balancing = _differences(times["gradients"], times["without balancing"])
        cuda = self.device.type == "cuda"
        return Timing(
            step_seconds=times["training"],
            counting_seconds=times.get("counting", []),
            cpu_seconds=statistics.median(times["cpu"]),
            ratio=_median_ratio(times["training"], first.times["training"]),
            tokens_per_second=tokens / seconds,
            mfu=self.flops_share * tokens / seconds,
            loading=self._share(times["loading"]),
            balancing=max(0.0, self._share(balancing)),
            statistics=self._share(times["statistics"]),
            peak_bytes=torch.cuda.max_memory_allocated(self.device) if cuda else None,
        )

    def _share(self, part: Sequence[float]) -> float:
        """The share of a step and its loading that a part takes."""
        steps = zip(self.times["training"], self.times["loading"], strict=True)
        return _median_ratio(part, [training + loading for training, loading in steps])

    def _time(self, part: str, function: Callable[[], object]) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        start = time.perf_counter()
        function()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.times.setdefault(part, []).append(time.perf_counter() - start)

    def _load(self) -> None:
        self.step = self.run.next_step()

    def _train(self) -> None:
        self.outcome = self._gradients(self.objective)
        self.state.optimizer.step()
        self.state.optimizer.zero_grad()

    def _gradients(self, objective: Objective) -> Outcome:
        states = self.state.balance if objective is self.objective else None
        return accumulate_gradients(self.state.model, objective, self.step, states)

    @torch.no_grad()
    def _count(self) -> None:
        arm_step = self._arm_step()
        for span in self.step.passes():
            arm_step.count(routing_of(self.state.model, arm_step.inputs(span)), span)

    def _arm_step(self) -> ArmStep:
        return ArmStep(self.objective, self.step, self.state.balance or [])


def _median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def _differences(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def time_arms(
    configs: Sequence[ExperimentConfig],
    runs_dir: Path,
    rounds: int,
    progress: Callable[[str], None],
) -> Iterator[list[Timing]]:
    """Time the steps of arms in turn; after each round, yields the timing of each arm so far.

    Each arm trains on this machine's device, with one thread unless its config sets another number.

    Args:
        runs_dir: whose stored choice of kernels is used, as by the runs in it.
        rounds: measured steps per arm.
        progress: called with messages about data preparation.
    """
    device = torch.device(device_kind(configs[0].run))
    check_threads(configs[0].run)
    threads = configs[0].run.threads or 1
    torch.set_num_threads(threads)
    arms = []
    for config in configs:
        config = replace(config, run=replace(config.run, threads=threads, device=device.type))
        corpus = prepare(config.data, progress=progress)
        kernels = choose(config, corpus.vocab_size, runs_dir, device)
        arms.append(_TimedArm(config, corpus, device, kernels))
    for _ in range(rounds):
        for arm in arms:
            arm.time_round()
        yield [arm.timing(arms[0]) for arm in arms]


def machine_of(config: ExperimentConfig) -> str:
    """A description of the device on which arms are timed, and of torch."""
    if device_kind(config.run) == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    threads = config.run.threads or 1
    return f"{threads} thread{'s' * (threads > 1)} of a CPU, torch {torch.__version__}"

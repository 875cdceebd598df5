"""What runs will take on this machine: tokens, FLOPs, disk, and time by a short calibration."""

import heapq
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from moebench.config.compose import from_dict
from moebench.config.cost import disk_bytes, evaluations, training_flops
from moebench.config.schema import ExperimentConfig
from moebench.config.stackable import stack_key_of
from moebench.data.corpus import Corpus, prepare
from moebench.plans import Job
from moebench.study.calibration import Calibration, calibrate
from moebench.study.stacking import on_gpu

SECONDS = 4.0  # in which the shapes of a sweep are timed, the most expensive first
AT_ONCE = 4  # shapes that share these seconds evenly; more get what is left

StackSize = Callable[[ExperimentConfig], int]


class Range(NamedTuple):
    """Seconds: an estimate, and the least and the most that the timed steps suggest."""

    middle: float
    low: float
    high: float


@dataclass(eq=False)
class Shape:
    """Runs that cost the same.

    Attributes:
        config: of one of them.
        jobs: all of them.
        stack: runs that one process trains at once.
        calibration: of a process; None if it was not timed.
        timed: runs in that process.
    """

    config: ExperimentConfig
    corpus: Corpus
    jobs: list[Job]
    stack: int
    calibration: Calibration | None = None
    timed: int = 0

    @property
    def tokens(self) -> int:
        """Read in the training of one run."""
        return self.config.train.steps * self.config.global_bsz * self.config.seq_len

    @property
    def flops(self) -> int:
        """Of the training steps of one run."""
        return self.tokens * training_flops(self.config, self.corpus.vocab_size)

    def seconds(self, like: "Shape", step: Callable[[Sequence[float]], float]) -> float:
        """The time of a process, from that of a shape that was timed, by their FLOPs.

        Args:
            step: chooses one of the timed steps.
        """
        assert like.calibration is not None
        start, evaluation, steps = like.calibration
        scale = self.flops / self.config.train.steps / (like.flops / like.config.train.steps)
        runs = self.stack / like.timed
        once = start + evaluations(self.config.train) * evaluation * runs
        return once + self.config.train.steps * scale * runs * step(steps)


class Totals(NamedTuple):
    """What some runs take together.

    Attributes:
        stacks: processes that are started; each trains a run, or a stack of them.
        tokens: read in training.
        flops: of training, without counting passes and evaluations.
        disk_bytes: of the finished records.
        seconds: from the first start to the last end.
        shapes, timed: kinds of runs that differ in cost, and how many of these were timed.
    """

    arms: int
    runs: int
    stacks: int
    tokens: int
    flops: int
    disk_bytes: int
    seconds: Range
    shapes: int
    timed: int


class Budget:
    """What jobs will take, so many processes at a time.

    Args:
        jobs: all that will be asked about.
        workers: processes at a time.
        stack_size: how many jobs of a config's shape one process trains at once; None means 1.
        seconds: to time their shapes in. At least one is timed.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        workers: int,
        stack_size: StackSize | None = None,
        seconds: float = SECONDS,
    ) -> None:
        self.workers = workers
        self._shapes: dict[str, Shape] = {}
        for job in jobs:
            key = _cost_key(job)
            if key not in self._shapes:
                config = from_dict(job.config)
                size = stack_size(config) if stack_size else 1
                self._shapes[key] = Shape(config, prepare(config.data), [], size)
            self._shapes[key].jobs.append(job)
        self._shape_of = {job.id: shape for shape in self._shapes.values() for job in shape.jobs}
        self._timed: list[Shape] = []
        self._time(seconds)

    def _time(self, seconds: float) -> None:
        """Time the shapes, those with the most FLOPs first, until the time is spent."""
        shapes = sorted(self._shapes.values(), key=lambda shape: -shape.flops * len(shape.jobs))
        end = time.monotonic() + seconds
        for shape in shapes:
            if time.monotonic() < end or not self._timed:
                shape.stack = min(shape.stack, len(shape.jobs))
                # A stack is for a GPU. Without one here, a single run says what there is to say.
                gpu = on_gpu(shape.config.run.device)
                shape.timed = shape.stack if gpu else 1
                configs = [from_dict(job.config) for job in shape.jobs[: shape.timed]]
                share = seconds / min(len(shapes), AT_ONCE)
                shape.calibration = calibrate(configs, shape.corpus, share)
                self._timed.append(shape)

    def processes(self, jobs: Iterable[Job]) -> list[list[Job]]:
        """The jobs of each process, in the order in which processes start."""
        started: list[list[Job]] = []
        unfilled: dict[object, list[Job]] = {}
        for job in jobs:
            size = self._shape_of[job.id].stack
            key = stack_key_of(job.config) if size > 1 else job.id
            if len(unfilled.get(key, ())) % size == 0:
                started.append([])
                unfilled[key] = started[-1]
            unfilled[key].append(job)
        return started

    def seconds(self, process: Sequence[Job]) -> Range:
        """The time of a process that nothing else slows down."""
        shape = self._shape_of[process[0].id]
        like = [shape] if shape.calibration else self._timed
        return Range(
            median(shape.seconds(other, median) for other in like),
            min(shape.seconds(other, min) for other in like),
            max(shape.seconds(other, max) for other in like),
        )

    def makespan(self, jobs: Iterable[Job]) -> Range:
        """The time from the first start to the last end, if each worker takes the next process."""
        times = [self.seconds(process) for process in self.processes(jobs)] or [Range(0, 0, 0)]
        return Range(*(_last_end(of_kind, self.workers) for of_kind in zip(*times, strict=True)))

    def totals(self, jobs: Sequence[Job]) -> Totals:
        """What some jobs take together."""
        shapes = [self._shape_of[job.id] for job in jobs]
        return Totals(
            arms=len({job.arm_hash for job in jobs}),
            runs=len(jobs),
            stacks=len(self.processes(jobs)),
            tokens=sum(shape.tokens for shape in shapes),
            flops=sum(shape.flops for shape in shapes),
            disk_bytes=sum(disk_bytes(s.config, s.corpus.vocab_size) for s in shapes),
            seconds=self.makespan(jobs),
            shapes=len({*map(id, shapes)}),
            timed=len({id(shape) for shape in shapes if shape.calibration}),
        )


def _last_end(times: Sequence[float], workers: int) -> float:
    free = [0.0] * workers
    for seconds in times:
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)


def _cost_key(job: Job) -> str:
    """What decides how long a run takes, as text."""
    free = {"seed": None, "loss": None, "optim": None}
    if job.config["run"]["device_bsz"] is None:  # else groups may span passes and be counted first
        free |= {"scope": None, "balance_bsz": None}
    return json.dumps({**job.config, **free})


# In words


def lines(totals: Totals, workers: int) -> list[str]:
    """The totals as lines of text."""
    if not totals.runs:
        return ["nothing is left to train"]
    guessed = totals.shapes - totals.timed
    return [
        f"to train: {totals.arms} arms, {totals.runs} runs, {totals.stacks} processes, {workers} "
        f"at a time; {_scaled(totals.tokens)} tokens, {_scaled(totals.flops)}FLOPs, "
        f"{_scaled(totals.disk_bytes)}B of disk",
        f"time here: about {_clock(totals.seconds.middle)}; {_clock(totals.seconds.low)} to "
        f"{_clock(totals.seconds.high)} by the spread of timed steps. One process was timed at a "
        "time; several slow each other down."
        + f" {guessed} of {totals.shapes} kinds of runs are guessed by FLOPs."
        * (guessed > 0),
    ]


def _scaled(number: float) -> str:
    """A number with three digits and a prefix of SI."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if number < 1000:
            return f"{number:.3g} {prefix}"
        number /= 1000
    return f"{number:.4g} E"


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"

"""What a sweep of many runs costs on a cluster, and what breaks first: a simulation.

What one job and the sweep ask of a processor and of a shared file system is counted and timed on
this machine (`traffic.py`). The rest is simulated: slots that train one process after another, a
file system that answers one operation after another, the processes of the sweep and their starts.
Figures that were not measured here are options, and the page says which they are.

    python benchmarks/scaling.py [--step-seconds S] [--fs-operations N] [KEY=VALUE ...]
"""

import argparse
import heapq
import json
import time
from dataclasses import dataclass, replace
from typing import NamedTuple

from tables import Row, markdown
from traffic import Operations, Planning, operations, planning, start_seconds

from moebench.config.compose import Composer
from moebench.config.cost import disk_bytes, evaluations, parameters
from moebench.data.corpus import prepare
from moebench.experiment.session import status_every
from moebench.lease import BEAT

BEATS = 2  # operations of a touch of a lease
LATENCY = 1e-3  # seconds that a file operation over a network takes, without a queue
HOUR = 3600.0


@dataclass(frozen=True)
class Work:
    """What a process trains: one run, or a stack of runs on a GPU.

    Attributes:
        runs: in a process.
        seconds: that it trains and evaluates.
        disk_bytes: of its records.
        saved_bytes: of all its checkpoints, also those that are not kept.
    """

    runs: int
    seconds: float
    disk_bytes: float
    saved_bytes: float


@dataclass(frozen=True)
class Cluster:
    """Where processes run.

    Attributes:
        slots: processes at a time.
        forked: processes that share a start: all slots of a machine fork from one server.
        fs_operations, fs_bytes: that the shared file system answers and writes in a second.
        poll: seconds between looks of the sweep.
        queued: whether SLURM starts the processes; else they are the sweep's own, which it can see
            without files.
    """

    name: str
    slots: int
    forked: int
    fs_operations: float
    fs_bytes: float
    poll: float
    queued: bool = False


class Costs(NamedTuple):
    """What was measured: see `traffic.py`."""

    planning: Planning
    operations: Operations
    start: float


class Outcome(NamedTuple):
    """A simulated sweep.

    Attributes:
        planned: seconds until the plan is written.
        wall: seconds from the command to the last end.
        starting: mean seconds from the start of a process to its first step.
        operations, bytes: a second that the file system is asked for while all slots train.
    """

    planned: float
    wall: float
    starting: float
    operations: float
    bytes: float


def steady_operations(costs: Costs, work: Work, active: int, poll: float, queued: bool) -> float:
    """File operations a second of processes that train, and of the sweep that looks at them."""
    every = status_every(work.seconds / 2, work.runs)
    own = work.runs * (costs.operations.status / every + BEATS / BEAT)
    # The launcher asks for every run, rests, and asks again. It waits for each answer.
    asked = active * work.runs * costs.operations.look if queued else 0
    # The display reads the same runs, for at most a tenth of the time.
    shown = active * work.runs * costs.operations.poll
    looks = asked / (poll + asked * LATENCY) + shown / max(poll, 10 * shown * LATENCY)
    return active * own + looks


def simulate(costs: Costs, work: Work, cluster: Cluster, runs: int) -> Outcome:
    """Train so many runs: slots take the next process; starts queue at the file system."""
    made = costs.planning
    planned = made.fixed + runs * (made.compose + made.write)
    processes = -(-runs // work.runs)
    active = min(cluster.slots, processes)
    steady = steady_operations(costs, work, active, cluster.poll, cluster.queued)
    left = max(cluster.fs_operations - steady, 0.05 * cluster.fs_operations)
    saved = active * work.saved_bytes / work.seconds
    slower = max(1.0, steady / cluster.fs_operations, saved / cluster.fs_bytes)
    read = 2 * runs * made.read  # the plan is read by the worker, and by the process that trains
    free = [(planned, slot) for slot in range(active)]
    warm: set[int] = set()  # machines whose server has imported torch
    server = waited = 0.0
    for _ in range(processes):
        now, slot = heapq.heappop(free)
        machine = slot // cluster.forked
        cold = machine not in warm
        warm.add(machine)
        asked = (costs.operations.start if cold else 0) + work.runs * costs.operations.lock
        server = max(server, now) + asked / left
        imports = cold or cluster.forked == 1
        begun = max(server, now) + (costs.start if imports else 0.0) + read
        waited += begun - now
        heapq.heappush(free, (begun + slower * work.seconds, slot))
    return Outcome(planned, max(free)[0], waited / processes, steady, saved)


def clusters(args: argparse.Namespace) -> list[tuple[Cluster, Work]]:
    """The machines of the page, with what a process trains there."""
    config = Composer().compose(args.words)
    corpus = prepare(config.data)
    evaluated = evaluations(config.train) * args.evaluation_seconds
    disk = disk_bytes(config, corpus.vocab_size)
    of_checkpoint = 12 * parameters(config, corpus.vocab_size)  # weights and two moments in fp32
    saved = of_checkpoint * (config.train.steps // config.run.checkpoint_every)
    launches = args.launches + (args.stack - 1) * args.launches_each
    on_gpu = config.train.steps * launches * args.launch_seconds * (1 + args.evaluation_share)
    core = Work(1, config.train.steps * args.step_seconds + evaluated, disk, saved)
    stack = Work(args.stack, on_gpu, args.stack * disk, args.stack * saved)
    fs = args.fs_operations, args.fs_bytes
    return [
        (Cluster("1 GPU", 1, 1, *fs, 0.2), stack),
        (Cluster("8 GPUs, one machine", 8, 8, *fs, 0.2), stack),
        (Cluster("64 GPUs, 8 machines", 64, 8, *fs, args.poll, queued=True), stack),
        (Cluster("200 cores, one machine", 200, 200, *fs, 0.2), core),
        (Cluster("200 cores, a job each", 200, 1, *fs, args.poll, queued=True), core),
    ]


def row(cluster: Cluster, work: Work, costs: Costs, runs: int) -> Row:
    made = simulate(costs, work, cluster, runs)
    ideal = -(-runs // work.runs) * work.seconds / cluster.slots
    return {
        "where": cluster.name,
        "runs": runs,
        "hours": made.wall / HOUR,
        "training alone, hours": ideal / HOUR,
        "planning, s": made.planned,
        "mean start, s": made.starting,
        "file operations/s": made.operations,
        "of what it answers": made.operations / cluster.fs_operations,
        "checkpoints, MB/s": made.bytes / 1e6,
        "of what it writes": made.bytes / cluster.fs_bytes,
        "disk, GB": runs / work.runs * work.disk_bytes / 1e9,
    }


def limits(costs: Costs, work: Work, args: argparse.Namespace) -> list[Row]:
    """What each part asks for if all jobs train at once, one a machine."""
    rows: list[Row] = []
    for jobs in (100, 1_000, 10_000):
        steady = steady_operations(costs, replace(work, runs=1), jobs, args.poll, queued=True)
        made = costs.planning
        rows.append(
            {
                "jobs at once": jobs,
                "planning, s": made.fixed + jobs * (made.compose + made.write),
                "plan, MB": jobs * made.bytes / 1e6,
                "plan read by all, GB": 2 * jobs * jobs * made.bytes / 1e9,
                "reading it, s a job": 2 * jobs * made.read,
                "all start, min": jobs * costs.operations.start / args.fs_operations / 60,
                "one look, s": jobs * (costs.operations.poll + costs.operations.look) * LATENCY,
                "steady operations/s": steady,
                "of what it answers": steady / args.fs_operations,
            }
        )
    return rows


def measured_step(words: list[str]) -> tuple[float, float]:
    """Process seconds of a step and of an evaluation of one run, by one thread here."""
    from statistics import median

    from moebench.study.calibration import calibrate

    config = Composer().compose([*words, "run.device=cpu"])
    found = calibrate([config], prepare(config.data), 20.0, time.process_time)
    return median(found.steps), found.evaluation


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("words", nargs="*", default=["model=small", "train.steps=4000"])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--step-seconds", type=float, help="of a core; measured here by default")
    parser.add_argument("--evaluation-seconds", type=float, default=0.0, help="of a core")
    parser.add_argument("--stack", type=int, default=16, help="runs in a process on a GPU")
    parser.add_argument("--launches", type=int, default=1110, help="of a step of one run")
    parser.add_argument("--launches-each", type=int, default=80, help="of each further run")
    parser.add_argument("--launch-seconds", type=float, default=8e-6, help="assumed")
    parser.add_argument("--evaluation-share", type=float, default=0.1, help="of a GPU's steps")
    parser.add_argument("--fs-operations", type=float, default=5000, help="a second; assumed")
    parser.add_argument("--fs-bytes", type=float, default=2e9, help="a second; assumed")
    parser.add_argument("--poll", type=float, default=2.0, help="seconds between looks at SLURM")
    parser.add_argument("--costs", type=json.loads, help="what was measured, as printed")
    return parser.parse_args()


def main() -> None:
    args = parsed()
    if args.step_seconds is None:
        args.step_seconds, args.evaluation_seconds = measured_step(args.words)
    if args.costs:
        made, counted, start = args.costs
        costs = Costs(Planning(*made), Operations(*counted), start)
    else:
        costs = Costs(planning(), operations(), start_seconds())
    print(f"step {args.step_seconds:.4g} s, evaluation {args.evaluation_seconds:.4g} s on a core")
    print(f"--costs '{json.dumps(costs)}'\n")
    of_all = clusters(args)
    print(markdown([row(*pair, costs, args.runs) for pair in of_all]), "\n")
    print(markdown(limits(costs, of_all[-1][1], args)))


if __name__ == "__main__":
    main()

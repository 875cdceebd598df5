"""One config becomes one record: prepare, train, evaluate, seal."""

import errno
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

import moebench
from moebench.config.compose import to_yaml
from moebench.config.cost import training_flops
from moebench.config.identity import (
    arm_hash,
    coefficients,
    label,
    run_hash,
    run_name,
    science,
    treatment,
)
from moebench.config.schema import ExperimentConfig, RunConfig, router_groups
from moebench.data.batches import check_epochs, make_batches, sequences_hash
from moebench.data.corpus import Corpus
from moebench.errors import ConfigError, MoebenchError, RecordError, Stopped, TrainingError
from moebench.lock import hold
from moebench.machine import usable_cores
from moebench.metrics.change import changed_tokens, saturation
from moebench.metrics.expert_parallel import main_ranks, random_slowdown, rank_numbers
from moebench.metrics.load import random_load, random_max_violation
from moebench.records import EVALUATED, FULL, SETTLED, Record
from moebench.tensorboard import View
from moebench.train import kernels as kernels_of
from moebench.train.build import State, make_objective, make_state
from moebench.train.checkpoint import load_checkpoint, save_checkpoint, steps_kept
from moebench.train.loop import Arm, Event, train
from moebench.train.ranks import Ranks, joined, world_size
from moebench.train.stack import Work, drive
from moebench.train.step import Outcome, state_kinds

AT_START = ("specialization/domain", "specialization/domain_given_token")  # kept of step 0, too
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)  # to write, by rights or a fault
HEARTBEAT = 0.5  # seconds between updates of status.json


def run_experiment(
    config: ExperimentConfig,
    corpus: Corpus,
    runs_dir: Path,
    *,
    resume: bool = False,
    force: bool = False,
    on_event: Callable[[Event], None] | None = None,
) -> Record:
    """Train one run and return its sealed record; at once if it is done already.

    Args:
        config: complete and checked.
        corpus: the prepared data of `config.data`.
        runs_dir: where records lie.
        resume: go on with an unfinished record, from its last checkpoint or from step 0.
        force: start afresh, whatever record is there.
        on_event: called after each step.

    Raises:
        RecordError: if there is an unfinished record and neither `resume` nor `force`, or if the
            record cannot be written.
        LockedError: if another process trains it.
        TrainingError: if the run cannot go on; its record then says failed, and why.
        Stopped: on SIGINT, SIGTERM or SIGUSR1, after a checkpoint; the run can be resumed.
    """
    record = Record(runs_dir / run_name(config, corpus.content_hash))
    if record.is_done() and not force:
        return record
    check_epochs(corpus, config)
    make_objective(config, corpus.domains)  # for its errors
    _check_ranks(config)
    with joined(_device(config.run)) as ranks:
        if not ranks.first:
            return _follow(config, corpus, record, ranks)
        try:
            return _lead(config, corpus, record, ranks, resume, force, on_event)
        except MoebenchError:
            ranks.give_up()
            raise


def _lead(
    config: ExperimentConfig,
    corpus: Corpus,
    record: Record,
    ranks: Ranks,
    resume: bool,
    force: bool,
    on_event: Callable[[Event], None] | None,
) -> Record:
    with hold(record):
        if record.is_done() and not force:
            return record
        if record.exists() and force:
            # aside first: killed half-way, what is left must not pass for a finished run
            aside = record.path.with_name(f".{record.name}.{os.getpid()}.old")
            os.replace(record.path, aside)
            shutil.rmtree(aside)
        if record.exists() and not resume:
            other = record.other_version()
            raise RecordError(
                f"{record.path}: is an unfinished run{other and f' of {other}'}; --resume goes on "
                "with it, --force starts afresh"
            )
        with _signals() as stop:
            [error] = drive([_session(config, corpus, record, ranks, stop, on_event=on_event)])
        if error is not None:
            raise error
        return record


def run_stack(
    configs: Sequence[ExperimentConfig], corpora: Sequence[Corpus], runs_dir: Path
) -> list[Exception | None]:
    """Train several runs at once, as one stack; unfinished ones from their last checkpoints.

    Args:
        configs: complete and checked, of equal `stackable.stack_key`.
        corpora: the prepared data of each.
        runs_dir: where records lie.

    Returns:
        Of each run, what `run_experiment` would raise for it; None if it is done. A LockedError
        for one that another process trains.
    """
    pairs = list(zip(configs, corpora, strict=True))
    records = [Record(runs_dir / run_name(config, data.content_hash)) for config, data in pairs]
    errors: list[Exception | None] = [None for _ in pairs]
    with ExitStack() as held, _signals() as stop:
        numbers = []
        for number, ((config, data), record) in enumerate(zip(pairs, records, strict=True)):
            try:
                check_epochs(data, config)
                make_objective(config, data.domains)
                held.enter_context(hold(record))
            except MoebenchError as error:
                errors[number] = error
                continue
            if not record.is_done():
                numbers.append(number)
        ways = [
            _session(
                configs[each], corpora[each], records[each], Ranks(), stop, stacked=len(numbers)
            )
            for each in numbers
        ]
        for number, error in zip(numbers, drive(ways), strict=True):
            errors[number] = error
    return errors


def _follow(config: ExperimentConfig, corpus: Corpus, record: Record, ranks: Ranks) -> Record:
    """Train a rank's share of every step; the first rank says how, and keeps the record."""
    begun = ranks.tell(None)
    if begun is None:
        raise TrainingError(f"{record.path}: rank {ranks.rank}: the first rank did not begin")
    run, step = begun
    config, device = replace(config, run=run), ranks.device(run.device)
    torch.set_num_threads(run.threads)
    state = make_state(config, corpus.vocab_size, device)
    try:
        if step:
            path = record.path / "checkpoints" / f"step-{step}"
            kinds = state_kinds(make_objective(config, corpus.domains))
            kept = load_checkpoint(path, state.model, state.optimizer, device, kinds)
            state.step, state.balance, state.load = kept
        with _signals():  # the first rank heeds them
            for event in train(config, corpus, state, device, ranks):
                stopping = ranks.tell(None)
                if stopping and event.step < config.train.steps:
                    raise Stopped(record.path, event.step, stopping)
    except RuntimeError as error:
        raise TrainingError(
            f"{record.path}: rank {ranks.rank} stopped ({str(error).splitlines()[0]})"
        ) from None
    return record


def _session(
    config: ExperimentConfig,
    corpus: Corpus,
    record: Record,
    ranks: Ranks,
    stop: Sequence[int],
    *,
    stacked: int = 1,
    on_event: Callable[[Event], None] | None = None,
) -> Generator[Work, Outcome]:
    """Train and record one run; asks for the gradients of each step, as `stack.drive` gives them.

    Args:
        stop: holds the signals that have come.
        stacked: runs that are trained at once.
    """
    resumed = record.exists()
    config = replace(config, run=_execution(config.run, record if resumed else None))
    device = ranks.device(config.run.device)
    torch.set_num_threads(config.run.threads or 1)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    steps, checkpoints = config.train.steps, record.path / "checkpoints"
    state: State | None = None
    event: Event | None = None
    latest: dict[str, Any] = {}
    began = time.monotonic() - (record.status().get("seconds", 0.0) if resumed else 0.0)
    told = 0.0

    def tell(status: str, **more: Any) -> None:
        record.set_status(
            status,
            step=state.step if state else 0,
            steps=steps,
            seconds=round(time.monotonic() - began, 3),
            **latest,
            **more,
        )

    def end(status: str, reason: str) -> None:
        if not record.is_done():  # what comes after the seal takes nothing back
            with suppress(OSError):  # of a full disk, `reason` tells
                tell(status, reason=reason)

    def due(step: int) -> bool:
        return step % config.run.checkpoint_every == 0 or step == steps

    def append(event: Event) -> dict[str, Any]:
        row = {**(event.row or {}), **_changed(record, event)}
        if "speed/tokens_per_second" in row and stacked == 1:
            row["speed/mfu"] = row["speed/tokens_per_second"] * of_token
        row["time"] = round(time.monotonic() - began, 3)
        record.append(row)
        for key in ("train/loss", "valid/nats", "speed/tokens_per_second"):
            latest[key] = row.get(key, latest.get(key))
        return row

    def append_pending(event: Event | None) -> None:
        """What a step said that was made, though the next one failed."""
        if event is not None and event.pending is not None:
            with suppress(Exception):
                event.arrive()
                append(event)

    def keep(event: Event, arm: Arm, view: View) -> None:
        nonlocal told
        if event.row is not None:
            row = append(event)
            if event.routing is not None:
                record.save_routing(event.step, event.routing)
            view.add(row, event.routing)
        if on_event is not None:
            on_event(event)
        # looked at once: it may come at any moment
        stopping = ranks.tell(stop[0] if stop else None)
        if event.step and (due(event.step) or stopping):
            arm.look()
            save_checkpoint(
                checkpoints,
                event.step,
                arm.state.model,
                arm.state.optimizer,
                arm.state.balance or (),
                arm.state.load,
            )
        if time.monotonic() - told > HEARTBEAT:
            told = time.monotonic()
            tell("running")
        if stopping and event.step < steps:
            raise Stopped(record.path, event.step, stopping)

    manifest = {**describe(config, corpus, device), "ranks": ranks.size, "stacked": stacked}
    try:
        kernels = kernels_of.resumed(record.manifest()) if resumed else None
        if kernels is None:
            runs_dir, vocab_size = record.path.parent, corpus.vocab_size
            kernels = kernels_of.choose(config, vocab_size, runs_dir, device, ranks.size)
        manifest["kernels"] = asdict(kernels)
        if not resumed:
            record.begin(to_yaml(config), manifest)
        state = make_state(config, corpus.vocab_size, device)
        kernels_of.apply(kernels, state.model)
        of_token = training_flops(config, corpus.vocab_size) / kernels.peak_flops
        wrap = kernels_of.wrapper(kernels)
        kept = steps_kept(checkpoints)
        if kept:
            path = checkpoints / f"step-{kept[-1]}"
            kinds = state_kinds(make_objective(config, corpus.domains))
            state.step, state.balance, state.load = load_checkpoint(
                path, state.model, state.optimizer, device, kinds
            )
        if resumed:
            record.begin(to_yaml(config), _continued(record.manifest(), manifest, state.step))
            record.cut(state.step if kept else -1)
        tell("running")
        ranks.tell((config.run, state.step))
        arm = Arm(config, corpus, state, device, ranks)
        with View(record) as view:
            event = arm.begin() if state.step == 0 else None
            while True:
                if event is not None and (event.pending is None or due(event.step)):
                    event.arrive()
                    with arm.clock.paused():
                        keep(event, arm, view)
                    event = None
                if arm.done:
                    break
                step = arm.next_step()
                outcome = yield Work(arm, step, wrap)
                if event is not None:  # the GPU goes on with this step while the last is told
                    event.arrive()
                    keep(event, arm, view)
                event = arm.finish(step, outcome)
            _seal(config, record, state, time.monotonic() - began)
    except (Stopped, KeyboardInterrupt) as stopped:
        append_pending(event)
        end("stopped", str(stopped) or "interrupted twice")
        raise
    except Exception as error:
        append_pending(event)
        if _is_out_of_memory(error):
            error = TrainingError(
                f"run.device_bsz={config.run.device_bsz or config.global_bsz}: out of memory on "
                f"{device}{_in_use(device, stacked)} ({str(error).splitlines()[0]}); take a "
                "smaller divisor of global_bsz"
                + (", a smaller run.stack" if stacked > 1 else "")
                + ", or a smaller model"
            )
        elif number := _cannot_write(error, record):
            remedy = "free some space" if number in FULL else "see that it can be"
            error = TrainingError(
                f"{record.path}: cannot be written ({os.strerror(number)}); {remedy}, and "
                "--resume goes on from the last checkpoint"
            )
        said = (
            str(error) if isinstance(error, MoebenchError) else f"{type(error).__name__}: {error}"
        )
        end("failed", said)
        raise error from None
    tell("done")


def _in_use(device: torch.device, stacked: int) -> str:
    """How many runs there were, and the most memory that a GPU gave."""
    runs = f" with {stacked} runs stacked" if stacked > 1 else ""
    if device.type != "cuda":
        return runs
    return f"{runs}, {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB in use at most"


def _execution(wanted: RunConfig, record: Record | None) -> RunConfig:
    """How a run is executed, resolved: as typed, else as its record has it, else by the machine.

    A run that continues keeps what was resolved when it began, since another split or number of
    threads rounds differently. A value at its default counts as not typed.
    """
    if record is not None:
        before, untyped = record.config(), RunConfig()
        kept = {
            each.name: before[f"run.{each.name}"]
            for each in fields(RunConfig)
            if getattr(wanted, each.name) == getattr(untyped, each.name)
            and f"run.{each.name}" in before
        }
        wanted = replace(wanted, **kept)
    threads = wanted.threads or max(1, usable_cores() // world_size())
    return replace(wanted, device=_device(wanted), threads=threads)


def _device(wanted: RunConfig) -> str:
    there = torch.cuda.is_available()
    if wanted.device == "cuda" and not there:
        raise ConfigError("run.device=cuda: torch finds no CUDA device; use run.device=cpu")
    return "cuda" if there and wanted.device != "cpu" else "cpu"


def _check_ranks(config: ExperimentConfig) -> None:
    """Raise ConfigError if the ranks cannot share a step evenly."""
    size, own = world_size(), config.run.device_bsz
    if config.global_bsz % size:
        raise ConfigError(
            f"WORLD_SIZE={size}: must divide global_bsz={config.global_bsz}; start fewer ranks"
        )
    if own is not None and config.global_bsz % (size * own):
        raise ConfigError(
            f"run.device_bsz={own}: must divide the {config.global_bsz // size} sequences that a "
            f"rank of {size} has of a step"
        )


def _continued(first: dict[str, Any], now: dict[str, Any], step: int) -> dict[str, Any]:
    """The manifest of a run's first session, with what was other in a later one, from its step."""
    about = (
        *("moebench", "git", "torch", "python", "device_name", "threads", "stacked", "command"),
        "start",
    )
    session = {"step": step, **{key: now[key] for key in about}}
    return {**first, "resumed": [*first.get("resumed", []), session]}


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError):
        return True
    # torch has no type of its own for a CPU that cannot allocate
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


def _cannot_write(error: Exception, record: Record) -> int:
    """The system's number for why a record cannot be written; 0 for any other error."""
    if isinstance(error, SafetensorError):  # has it in words alone
        found = re.search(r"\(os error (\d+)\)", str(error))
        return int(found[1]) if found else 0
    if not isinstance(error, OSError) or error.errno not in {*FULL, *FORBIDDEN}:
        return 0
    inside = error.filename is None or Path(error.filename).is_relative_to(record.path)
    return error.errno if inside else 0


def _changed(record: Record, event: Event) -> dict[str, float]:
    """The share of tokens whose experts are not those of the evaluation before."""
    earlier = [step for step in record.routing_steps() if step < event.step]
    if event.routing is None or not earlier:
        return {}
    before, now = record.routing(earlier[-1])["probe_index"], event.routing["probe_index"]
    return {"router/changed": float(changed_tokens(before, now).mean())}


def _over_training(config: ExperimentConfig, record: Record, first: dict[str, Any]) -> Any:
    """What only a whole run can say: the state at its start, and how soon routing was settled."""
    found = {f"{key}_start": first[key] for key in AT_START if key in first}
    steps = record.routing_steps()
    if not steps:  # of a dense model
        return found
    settled = saturation({step: record.routing(step)["probe_index"] for step in steps})
    half = min(settled, key=lambda step: abs(step - config.train.steps / 2))
    return {**found, "router/saturation": settled[half]}


def _seal(config: ExperimentConfig, record: Record, state: State, seconds: float) -> None:
    steps = config.train.steps
    rows = record.rows()
    if not rows or rows[-1]["step"] != steps or "valid/nats" not in rows[-1]:
        raise RecordError(
            f"{record.path / 'metrics.jsonl'}: lacks rows of this run; --force starts afresh"
        )
    settled = [row for row in rows if row["step"] > steps * (1 - SETTLED)]
    metrics: dict[str, float] = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        if "/" not in key or isinstance(rows[-1].get(key), list):
            continue
        values = [row[key] for row in settled if key in row]
        if values:
            last = key.startswith(EVALUATED)
            metrics[key] = values[-1] if last else sum(values) / len(values)
    record.seal(
        {
            "status": "done",
            "arm": label(config),
            "seed": config.seed,
            "steps": state.step,
            "tokens": state.step * config.global_bsz * config.seq_len,
            "seconds": round(seconds, 3),
            "end": datetime.now(UTC).isoformat(timespec="seconds"),
            **metrics,
            **_over_training(config, record, rows[0]),
        }
    )


def describe(config: ExperimentConfig, corpus: Corpus, device: torch.device) -> dict[str, Any]:
    """The manifest: what was run on what, with which code."""
    model, size = config.model, _group_size(config)
    ranks = main_ranks(rank_numbers(model.num_experts, config.global_bsz // config.micro_bsz))
    windows = {
        "micro": config.micro_bsz * config.seq_len,
        "batch": config.global_bsz * config.seq_len,
        "global": len(corpus.domains) * config.data.valid_sequences * config.seq_len,
    }
    loads = {
        window: random_load(model.num_experts, model.top_k, tokens)
        for window, tokens in windows.items()
    }
    factor, group_bsz = config.router.capacity_factor, router_groups(config)
    if factor is not None and group_bsz is not None:  # the drop rate is what such groups drop
        tokens = group_bsz * config.seq_len
        own = random_load(model.num_experts, model.top_k, tokens, factor)
        loads["micro"]["drop_rate"] = own["drop_rate"]
    return {
        "run": run_name(config, corpus.content_hash),
        "hash": run_hash(config, corpus.content_hash),
        "arm": label(config),
        "arm_hash": arm_hash(config, corpus.content_hash),
        "seed": config.seed,
        "science": science(config, corpus.content_hash),
        "domains": list(corpus.domains),
        "heldout": list(corpus.heldout),
        "data": {
            "content_hash": corpus.content_hash,
            "source": config.data.source,
            "tokenizer": corpus.tokenizer.name,
            "tokenizer_hash": corpus.tokenizer.hash,
            "vocab_size": corpus.vocab_size,
        },
        "first_sequences": sequences_hash(make_batches(corpus, config).batch(1))[:16],
        "group": {"sequences": size, "tokens": size and size * config.seq_len},
        "coefficient_per_router": coefficients(config),
        "random_max_vio": {
            window: random_max_violation(model.num_experts, model.top_k, tokens)
            for window, tokens in windows.items()
        },
        "random_load": loads,
        "random_slowdown": random_slowdown(model.num_experts, model.top_k, windows["micro"], ranks)
        if ranks
        else None,
        "moebench": moebench.__version__,
        "git": _git(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine(),
        "threads": config.run.threads,
        "precision": config.train.precision,
        "command": shlex.join(["moebench", *sys.argv[1:]]),
        "start": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _group_size(config: ExperimentConfig) -> int | None:
    """Sequences whose counts are summed (for `shuffled`, the pool that is drawn from) by the
    heaviest of the terms that do not stop."""
    terms = [term for term in treatment(config) if "stop" not in term]
    heaviest = max(terms, key=lambda term: term["weight"], default={})
    return heaviest.get("balance_bsz")


@contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that a stopping signal adds itself to; a second SIGINT interrupts at once."""
    got: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield got
        return

    def note(number: int, _frame: Any) -> None:
        if number == signal.SIGINT and got:
            raise KeyboardInterrupt
        got.append(number)

    before = {
        number: signal.signal(number, note)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    }
    try:
        yield got
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _git() -> dict[str, Any]:
    """The commit of the code that runs, if it runs from a checkout."""
    here = Path(moebench.__file__).parent

    def ask(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        tracked = ask("ls-files", "__init__.py")
        if not tracked:
            return {"commit": None, "dirty": None}
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.TimeoutExpired):
        return {"commit": None, "dirty": None}

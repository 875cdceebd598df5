"""One config becomes one record: prepare, train, evaluate, seal."""

import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock
import torch

import moebench
from moebench.config.compose import to_yaml
from moebench.config.identity import arm_hash, label, run_hash, run_name, science, treatment
from moebench.config.schema import ExperimentConfig, RunConfig
from moebench.data.batches import check_epochs
from moebench.data.corpus import Corpus
from moebench.errors import ConfigError, MoebenchError, RecordError, Stopped, TrainingError
from moebench.metrics.load import random_max_violation
from moebench.records import Record
from moebench.tensorboard import View
from moebench.train.checkpoint import load_checkpoint, save_checkpoint, steps_kept
from moebench.train.loop import SETTLED, Event, State, make_state, train

# Metrics of an evaluation: a summary holds their last value; of all others, the mean at the end.
EVALUATED = (
    *("valid/", "tune/", "heldout/", "specialization/"),
    *("load/max_vio_global", "load/utilization/"),
)
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
        RecordError: if there is an unfinished record and neither `resume` nor `force`, or if
            another process is at it.
        TrainingError: if the run cannot go on; its record then says failed, and why.
        Stopped: on SIGINT, SIGTERM or SIGUSR1, after a checkpoint; the run can be resumed.
    """
    record = Record(runs_dir / run_name(config, corpus.content_hash))
    if record.is_done() and not force:
        return record
    check_epochs(corpus, config)
    with _lock(record):
        if record.is_done() and not force:
            return record
        if record.exists() and force:
            # aside first: killed half-way, what is left must not pass for a finished run
            aside = record.path.with_name(f".{record.name}.{os.getpid()}.old")
            os.replace(record.path, aside)
            shutil.rmtree(aside)
        if record.exists() and not resume:
            raise RecordError(
                f"{record.path}: is an unfinished run{_other_version(record)}; --resume goes on "
                "with it, --force starts afresh"
            )
        return _run(config, corpus, record, on_event)


def _run(
    config: ExperimentConfig,
    corpus: Corpus,
    record: Record,
    on_event: Callable[[Event], None] | None,
) -> Record:
    resumed = record.exists()
    config = replace(config, run=_execution(config.run, record if resumed else None))
    device = torch.device(config.run.device)
    torch.set_num_threads(config.run.threads or 1)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    steps, checkpoints = config.train.steps, record.path / "checkpoints"
    state: State | None = None
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
            tell(status, reason=reason)

    manifest = describe(config, corpus, device)
    if not resumed:
        record.begin(to_yaml(config), manifest)
    try:
        with _signals() as stop:
            state = make_state(config, corpus.vocab_size, device)
            kept = steps_kept(checkpoints)
            if kept:
                path = checkpoints / f"step-{kept[-1]}"
                state.step = load_checkpoint(path, state.model, state.optimizer)
            if resumed:
                record.begin(to_yaml(config), _continued(record.manifest(), manifest, state.step))
                record.cut(state.step if kept else -1)
            tell("running")
            with View(record) as view:
                for event in train(config, corpus, state, device):
                    if event.row is not None:
                        row = {**event.row, "time": round(time.monotonic() - began, 3)}
                        record.append(row)
                        if event.routing is not None:
                            record.save_routing(event.step, event.routing)
                        view.add(row, event.routing)
                        for key in ("train/loss", "valid/nats", "speed/tokens_per_second"):
                            latest[key] = row.get(key, latest.get(key))
                    if on_event is not None:
                        on_event(event)
                    stopping = (
                        stop[0] if stop else None
                    )  # looked at once: it may come at any moment
                    due = event.step % config.run.checkpoint_every == 0 or event.step == steps
                    if event.step and (due or stopping):
                        save_checkpoint(checkpoints, event.step, state.model, state.optimizer)
                    if time.monotonic() - told > HEARTBEAT:
                        told = time.monotonic()
                        tell("running")
                    if stopping and event.step < steps:
                        raise Stopped(record.path, event.step, stopping)
                _seal(config, record, state, time.monotonic() - began)
    except (Stopped, KeyboardInterrupt) as stopped:
        end("stopped", str(stopped) or "interrupted twice")
        raise
    except Exception as error:
        if _is_out_of_memory(error):
            error = TrainingError(
                f"run.device_bsz={config.run.device_bsz or config.global_bsz}: out of memory on "
                f"{device} ({str(error).splitlines()[0]}); take a smaller divisor of global_bsz, "
                "or a smaller model"
            )
        said = (
            str(error) if isinstance(error, MoebenchError) else f"{type(error).__name__}: {error}"
        )
        end("failed", said)
        raise error from None
    tell("done")
    return record


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
    there = torch.cuda.is_available()
    if wanted.device == "cuda" and not there:
        raise ConfigError("run.device=cuda: torch finds no CUDA device; use run.device=cpu")
    return replace(
        wanted,
        device="cuda" if there and wanted.device != "cpu" else "cpu",
        threads=wanted.threads or len(os.sched_getaffinity(0)),
    )


def _continued(first: dict[str, Any], now: dict[str, Any], step: int) -> dict[str, Any]:
    """The manifest of a run's first session, with what was other in a later one, from its step."""
    about = ("moebench", "git", "torch", "python", "device_name", "threads", "command", "start")
    session = {"step": step, **{key: now[key] for key in about}}
    return {**first, "resumed": [*first.get("resumed", []), session]}


def _other_version(record: Record) -> str:
    """In words, which other code a record was made with; empty if it was this one."""
    made = record.manifest()
    ours = {"moebench": moebench.__version__, "torch": torch.__version__}
    other = [
        f"{name} {made.get(name)}" for name, version in ours.items() if made.get(name) != version
    ]
    return f" of {' and '.join(other)}" if other else ""


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError):
        return True
    # torch has no type of its own for a CPU that cannot allocate
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


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
        }
    )


def describe(config: ExperimentConfig, corpus: Corpus, device: torch.device) -> dict[str, Any]:
    """The manifest: what was run on what, with which code."""
    model, size = config.model, treatment(config).get("balance_bsz")
    windows = {
        "micro": config.micro_bsz * config.seq_len,
        "batch": config.global_bsz * config.seq_len,
        "global": len(corpus.domains) * config.data.valid_sequences * config.seq_len,
    }
    balance = config.loss.balance if treatment(config)["scope"] != "none" else 0.0
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
        "group": {"sequences": size, "tokens": size and size * config.seq_len},
        "coefficient_per_router": balance / model.num_layers,
        "random_max_vio": {
            window: random_max_violation(model.num_experts, model.top_k, tokens)
            for window, tokens in windows.items()
        },
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


@contextmanager
def _lock(record: Record) -> Iterator[None]:
    locks = record.path.parent / ".locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(locks / f"{record.name}.lock")
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise RecordError(f"{record.path}: another process is training it; wait for it") from None
    except OSError as error:
        raise RecordError(
            f"{record.path.parent}: cannot be written ({error.strerror}); "
            "name another directory with --runs-dir"
        ) from None
    try:
        yield
    finally:
        lock.release()


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

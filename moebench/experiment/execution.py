"""How a run is executed: its device, its threads, and its ranks."""

import os
import warnings
from dataclasses import fields, replace

import torch

from moebench.config.cost import product_flops
from moebench.config.schema import MOST_THREADS, ExperimentConfig, RunConfig
from moebench.device import BF16, unusable
from moebench.errors import ConfigError
from moebench.machine import usable_cores
from moebench.records import Record
from moebench.train.ranks import Ranks, world_size

THREADS_A_CORE = 4  # that may be asked for
ANY_MACHINE = 64  # threads that may be asked for anywhere
THREAD_FLOPS = 8_000_000  # of a product that pay for a thread, as measured (benchmarks/threads.py)


def resolved(config: ExperimentConfig, record: Record | None, ranks: Ranks) -> RunConfig:
    """The execution of a run: as typed, or else as in its record, or else as the machine allows.

    A run that continues keeps what was resolved when it started, since another split or number of
    threads rounds differently. A value at its default counts as not typed.

    Args:
        config: of which `run` is what was typed.
        record: of a run that continues; None for a new one.

    Raises ConfigError for a device that is not there, or too many threads.
    """
    wanted = config.run
    check_threads(wanted)
    if record is not None:
        before, default = record.config(), RunConfig()
        kept = {
            field.name: before[f"run.{field.name}"]
            for field in fields(RunConfig)
            if getattr(wanted, field.name) == getattr(default, field.name)
            and f"run.{field.name}" in before
        }
        wanted = replace(wanted, **kept)
    wanted = replace(wanted, device=device_kind(wanted))
    suited = suited_threads(replace(config, run=wanted), ranks)
    return replace(wanted, threads=wanted.threads or suited)


def suited_threads(config: ExperimentConfig, ranks: Ranks) -> int:
    """The threads of a run that asks for no number: what its cores and its products allow.

    On a CPU, each thread gets `THREAD_FLOPS` of an expert's product. With less, threads wait for
    each other longer than they compute, above all beside other programs (benchmarks/README.md). The
    load is not asked: the bits of a run would depend on the moment at which it starts.

    Args:
        config: with `run.device` resolved.
    """
    cores = available_threads(ranks)
    if config.run.device != "cpu":
        return cores
    sequences = config.run.device_bsz or config.global_bsz // ranks.size
    return max(1, min(cores, product_flops(config, sequences) // THREAD_FLOPS))


def available_threads(ranks: Ranks) -> int:
    """One for each core of this machine, divided among the ranks."""
    return max(1, min(MOST_THREADS, usable_cores() // ranks.size))


def check_threads(wanted: RunConfig) -> None:
    """Raise ConfigError for many more threads than this machine has cores.

    Each would wait for the others, and a machine has only so many threads for all processes. What
    the record of a run from a larger machine says is not checked: the run could not continue here.
    """
    cores = usable_cores()
    most = max(ANY_MACHINE, THREADS_A_CORE * cores)
    if wanted.threads is not None and wanted.threads > most:
        raise ConfigError(
            f"run.threads={wanted.threads}: this machine has {cores} cores for at most {most} "
            f"threads; use run.threads={cores}, or leave it out"
        )


def device_kind(wanted: RunConfig) -> str:
    """`cuda` or `cpu`. Raises ConfigError if the config asks for a device that is not there."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if wanted.device == "cuda" and not available:
        why = f" ({str(warned[0].message).split('. ')[0]})" if warned else ""
        raise ConfigError(
            f"run.device=cuda: torch finds no CUDA device{why}; moebench doctor says what to do "
            "about it, and run.device=cpu does without"
        )
    return "cuda" if available and wanted.device != "cpu" else "cpu"


def check_device(config: ExperimentConfig, device: torch.device) -> None:
    """Raise ConfigError for a GPU that is taken, full, or too old for the precision of the run."""
    if device.type != "cuda":
        return
    try:
        torch.cuda.mem_get_info(device)  # the first call that needs the GPU itself
        found = torch.cuda.get_device_capability(device)
    except RuntimeError as error:
        raise unusable(str(config.run.device), error) from None
    if config.train.precision == "bf16" and found < BF16:
        name, (major, minor) = torch.cuda.get_device_name(device), found
        raise ConfigError(
            f"train.precision=bf16: {name} has compute capability {major}.{minor}, and bf16 takes "
            f"{'.'.join(map(str, BF16))}; use train.precision=fp32, or run.device=cpu"
        )


def prepare_device(execution: RunConfig, device: torch.device) -> None:
    """Set threads, the order of sums on a GPU, and the start of its peak of memory."""
    torch.set_num_threads(execution.threads or 1)
    if device.type != "cuda":
        return
    if execution.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch asks for it
    torch.use_deterministic_algorithms(execution.deterministic)
    torch.cuda.reset_peak_memory_stats(device)


def check_ranks(config: ExperimentConfig) -> None:
    """Raise ConfigError if the ranks cannot share a step evenly."""
    size, device_bsz = world_size(), config.run.device_bsz
    if config.global_bsz % size:
        raise ConfigError(
            f"WORLD_SIZE={size}: must divide global_bsz={config.global_bsz}; start fewer ranks"
        )
    if device_bsz is not None and config.global_bsz % (size * device_bsz):
        raise ConfigError(
            f"run.device_bsz={device_bsz}: must divide the {config.global_bsz // size} sequences "
            f"that each of {size} ranks has of a step"
        )

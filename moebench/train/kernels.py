"""Which kernels a run uses, resolved once per directory of runs and device, and kept in a file.

All arms of a directory are computed alike: what is chosen never depends on a timing, and a choice
that was made holds for every later run there. The file also holds what the device's matrix products
reach, measured once, which `speed/mfu` is held against.
"""

import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn

from moebench.config.cost import training_flops
from moebench.config.schema import ExperimentConfig
from moebench.disk import read_json, write_json
from moebench.model.transformer import Attention
from moebench.records import cannot_write
from moebench.train.build import COMPUTE

FOLDER = ".kernels"  # hidden, so that it is no run
LONG_CPU = 5e14  # FLOPs of a run that earns the minutes that a compilation may take on a CPU
LONG_GPU = 2000  # steps of one that does on a GPU
SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices whose product is timed


@dataclass(frozen=True)
class Kernels:
    """What computes a run; kept in its manifest.

    Attributes:
        attention: `sdpa`, torch's fused one, or `matmul`, the products written out.
        experts: of the grouped products.
        compile: whether forward and backward are compiled.
        peak_flops: that a large product reaches on this device, in the run's precision and with
            its threads, a second.
    """

    attention: str
    experts: str
    compile: bool
    peak_flops: float


def choose(
    config: ExperimentConfig, vocab_size: int, runs_dir: Path, device: torch.device, ranks: int = 1
) -> Kernels:
    """The kernels of a run that begins, from the file of its directory or for it.

    Args:
        config: with `run.threads` resolved.
        ranks: of one run; several are not compiled.

    Raises RecordError if the file cannot be written.
    """
    known = "".join(each if each.isalnum() else "-" for each in _name(device)).strip("-").lower()
    path = runs_dir / FOLDER / f"{re.sub('-+', '-', known)}.json"
    wanted = ranks == 1 and _wants_compile(config, vocab_size, device)
    case = f"{config.train.precision}, {config.run.threads} threads, torch {torch.__version__}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):  # runs that begin at once agree on one peak
            before = _read(path)
            found = _completed(before, case, config, device, wanted)
            if found != before:
                write_json(path, {"device": _name(device), **found})
    except OSError as error:
        raise cannot_write(path.parent, error) from None
    if wanted and config.run.compile == "true" and found["no_compile"]:
        print(
            f"run.compile=true: cannot be compiled here ({found['no_compile']}); the run goes on "
            "without",
            file=sys.stderr,
        )
    return Kernels(
        attention=found["attention"],
        experts=found["experts"],
        compile=wanted and not found["no_compile"],
        peak_flops=found["peak_flops"][case],
    )


def _completed(
    found: dict[str, Any],
    case: str,
    config: ExperimentConfig,
    device: torch.device,
    wants_compile: bool,
) -> dict[str, Any]:
    """What a file holds, with what this run asks for and no run before it did."""
    by_device = {"attention": "sdpa" if device.type == "cuda" else "matmul"}
    found = {**by_device, "experts": "grouped_mm", **found}
    if wants_compile and "no_compile" not in found:
        found["no_compile"] = _why_not(device)
    peaks: dict[str, float] = found.get("peak_flops", {})
    if case not in peaks:
        peak = _measured_peak(COMPUTE[config.train.precision], device)
        found["peak_flops"] = {**peaks, case: peak}
    return found


def resumed(manifest: dict[str, Any]) -> Kernels | None:
    """The kernels that a run began with; None for a record that does not say."""
    try:
        return Kernels(**manifest["kernels"])
    except (KeyError, TypeError):
        return None


def wrapper(kernels: Kernels) -> Callable[[Callable[..., Any]], Callable[..., Any]] | None:
    """What a forward is wrapped in; None for nothing."""
    return torch.compile if kernels.compile else None


def apply(kernels: Kernels, model: nn.Module) -> None:
    """Let a model's attention be that of the choice."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.sdpa = kernels.attention == "sdpa"


def _wants_compile(config: ExperimentConfig, vocab_size: int, device: torch.device) -> bool:
    if config.run.compile != "auto":
        return config.run.compile == "true"
    if device.type == "cuda":
        return config.train.steps >= LONG_GPU
    tokens = config.train.steps * config.global_bsz * config.seq_len
    return tokens * training_flops(config, vocab_size) >= LONG_CPU


def _why_not(device: torch.device) -> str:
    """Why nothing can be compiled for a device, found by trying; "" if it can be."""
    try:
        torch.compile(lambda x: (x * 2 + 1).sum())(torch.ones(64, device=device))
    except Exception as error:  # a missing compiler has many faces
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return ""


def _measured_peak(dtype: torch.dtype, device: torch.device) -> float:
    """FLOPs a second of a large square product: the best of some, since others may be at work."""
    side = SIDE[device.type]
    one, other = (torch.rand(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        torch.mm(one, other)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "cpu"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return {key: value for key, value in found.items() if key != "device"}

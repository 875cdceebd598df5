"""The kernels of a run, chosen once for each directory of runs and device, and kept in a file.

All runs of a directory use the same kernels: the choice never depends on a timing, and it holds for
every later run there. The file also holds the measured speed of the device's matrix products, of
which `speed/mfu` is the share that a run reaches.
"""

import logging
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moebench.config.cost import training_flops
from moebench.config.schema import ExperimentConfig
from moebench.disk import cache_root, read_json, write_json
from moebench.lease import hold
from moebench.model.cpu_products import linear
from moebench.model.experts import Experts
from moebench.model.transformer import Attention
from moebench.records import cannot_write
from moebench.seals import refuse_link
from moebench.train.build import COMPUTE
from moebench.train.expert_kernels import (
    NAMES,
    TORCH,
    TRITON,
    automatic,
    check_experts,
    trouble,
)

logger = logging.getLogger(__name__)

FOLDER = ".kernels"  # hidden, so that it does not count as a run
LONG_CPU = 5e14  # FLOPs of a run on a CPU that is worth a compilation, which may take minutes
LONG_GPU = 2000  # steps of a run on a GPU that is worth one
SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices whose product is timed


@dataclass(frozen=True)
class Kernels:
    """The kernels of a run, as its manifest has them.

    Attributes:
        attention: `sdpa`, torch's fused attention, or `matmul`, the products written out.
        experts: `grouped_mm`, torch's grouped product, or `triton`, the kernels of `fused.py`.
        compile: whether forward and backward are compiled.
        peak_flops: FLOPs a second of a large product on this device, in the run's precision and
            with its threads.
    """

    attention: str
    experts: str
    compile: bool
    peak_flops: float

    @property
    def fused(self) -> bool:
        """Whether the experts are the Triton kernels."""
        return self.experts == TRITON


def choose(
    config: ExperimentConfig, vocab_size: int, runs_dir: Path, device: torch.device, ranks: int = 1
) -> Kernels:
    """The kernels of a new run: those in the file of its directory, which is completed.

    Args:
        config: with `run.threads` resolved.
        ranks: that share the run; with several, it is not compiled.

    Raises:
        RecordError: if the file cannot be written.
        ConfigError: if the experts would be Triton's, and it does not work here.
    """
    slug = re.sub(r"[\W_]+", "-", _name(device)).strip("-").lower()
    path = runs_dir / FOLDER / f"{slug}.json"
    wanted = ranks == 1 and _wants_compile(config, vocab_size, device)
    case = f"{config.train.precision}, {config.run.threads} threads, torch {torch.__version__}"
    try:
        refuse_link(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        # runs that start together agree on one peak
        with hold(path.with_suffix(".lock"), wait=True):
            known = _read(path)
            choice = _completed(known, case, config, device, wanted)
            if choice != known:
                write_json(path, {"device": _name(device), **choice})
    except OSError as error:
        raise cannot_write(path.parent, error) from None
    if wanted and config.run.compile == "true" and choice["no_compile"]:
        logger.warning(
            "run.compile=true: cannot be compiled here (%s); the run continues without",
            choice["no_compile"],
        )
    experts = NAMES.get(config.run.experts) or choice["experts"][config.train.precision]
    check_experts(config, device, experts)
    return Kernels(
        attention=choice["attention"],
        experts=experts,
        compile=wanted and not choice["no_compile"],
        peak_flops=choice["peak_flops"][case],
    )


def _completed(
    known: dict[str, Any],
    case: str,
    config: ExperimentConfig,
    device: torch.device,
    wants_compile: bool,
) -> dict[str, Any]:
    """The content of a file, with all that this run needs and earlier ones did not."""
    by_device = {"attention": "sdpa" if device.type == "cuda" else "matmul"}
    choice = {**by_device, "experts": {}, **known}
    precision = config.train.precision
    if config.run.experts == "auto" and precision not in choice["experts"]:
        choice["experts"] = {**choice["experts"], precision: automatic(precision, device)}
    if wants_compile and "no_compile" not in choice:
        choice["no_compile"] = _why_not(device)
    peaks: dict[str, float] = choice.get("peak_flops", {})
    if case not in peaks:
        peak = _measured_peak(COMPUTE[precision], device, torch.get_num_threads())
        choice["peak_flops"] = {**peaks, case: peak}
    return choice


def resumed(
    manifest: dict[str, Any], config: ExperimentConfig, device: torch.device
) -> Kernels | None:
    """The kernels that a run started with, but for what is typed; None for a record without them.

    Raises ConfigError if the experts would be Triton's, and it does not work here.
    """
    try:
        kernels = Kernels(**manifest["kernels"])
    except (KeyError, TypeError):
        return None
    experts = NAMES.get(config.run.experts) or kernels.experts
    check_experts(config, device, experts)
    return replace(kernels, experts=experts)


def apply_to_read(
    manifest: dict[str, Any], config: ExperimentConfig, device: torch.device, model: nn.Module
) -> None:
    """Set the kernels of a model that is read and not trained, maybe on another device.

    They are those of the run on a device of its kind, unless they do not work here; else those that
    a new run would take.
    """
    recorded = manifest.get("kernels", {}).get("experts")
    own = manifest.get("device") == device.type and recorded in NAMES.values()
    precision = config.train.precision
    experts = recorded if own else automatic(precision, device)
    if experts == TRITON and trouble(precision, device):
        experts = TORCH
    attention = "sdpa" if device.type == "cuda" else "matmul"
    apply(Kernels(attention, experts, compile=False, peak_flops=0.0), model)


def wrapper(kernels: Kernels) -> Callable[[Callable[..., Any]], Callable[..., Any]] | None:
    """The function that compiles a forward; None if it is not compiled."""
    if not kernels.compile:
        return None
    _keep_compiled()
    return torch.compile


def _keep_compiled() -> None:
    """Keep what torch compiles among moebench's cached files, for all later runs of its shape.

    Else it is in the folder for temporary files. A user's TORCHINDUCTOR_CACHE_DIR wins.
    """
    with suppress(FileNotFoundError):  # there is no home directory
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_root() / "compiled"))


def apply(kernels: Kernels, model: nn.Module) -> None:
    """Set the kernels of a model's attention and experts."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.sdpa = kernels.attention == "sdpa"
        if isinstance(module, Experts):
            module.fused = kernels.fused


def _wants_compile(config: ExperimentConfig, vocab_size: int, device: torch.device) -> bool:
    if config.run.compile != "auto":
        return config.run.compile == "true"
    if device.type == "cuda":
        return config.train.steps >= LONG_GPU
    tokens = config.train.steps * config.global_bsz * config.seq_len
    return tokens * training_flops(config, vocab_size) >= LONG_CPU


def _why_not(device: torch.device) -> str:
    """Try to compile for a device. Returns why that fails, or "" if it works."""
    _keep_compiled()
    try:
        torch.compile(lambda x: (x * 2 + 1).sum())(torch.ones(64, device=device))
    except Exception as error:  # a missing compiler raises many types
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return ""


@cache
def _measured_peak(dtype: torch.dtype, device: torch.device, threads: int) -> float:
    """FLOPs a second of a large square product: the best of five, as the machine may be busy.

    It is measured once in a process for each number of threads.
    """
    side = SIDE[device.type]
    one, other = (torch.rand(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        linear(one, other)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    if device.type == "cuda":
        del one, other
        torch.cuda.reset_peak_memory_stats(device)  # this is no memory of a run
    return 2 * side**3 / best


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "cpu"


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return {key: value for key, value in content.items() if key != "device"}

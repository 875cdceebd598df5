"""What a device computes with, decided once for all runs of a directory.

Arms are compared at equal kernels, so nothing is chosen by timing inside an arm. What the device
has is found out by the first run in a directory, kept there as devices.json, and recorded by every
run: the kind of attention and of grouped products, whether a compiler is there, and the speed of a
large matrix product, against which utilisation is told.
"""

import json
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock
from torch import nn

from moebench.config.schema import ExperimentConfig
from moebench.model.flops import step_flops
from moebench.model.transformer import MoETransformer

FILE = "devices.json"
SIZES = {"cpu": 1024, "cuda": 8192}  # of the square matrices that are multiplied
REPEATS = 4
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
EARNED = 600.0  # seconds at half the peak from which on compiling, up to a minute, is earned


class Kernels(NamedTuple):
    """What a run computes with.

    Attributes:
        attention: `matmul` (softmax written out) or `sdpa` (torch's fused kernel).
        grouped: the kernel of grouped products.
        compiler: whether torch.compile has the compiler that it needs.
        peak_flops: operations a second of a large product in the run's precision.
        compile: whether the run's forward is compiled.
    """

    attention: str
    grouped: str
    compiler: bool
    peak_flops: float
    compile: bool = False


def kernels(
    config: ExperimentConfig, runs_dir: Path, device: torch.device, model: MoETransformer
) -> Kernels:
    """The kernels of a run, found out or as they were found out before in this directory."""
    precision = config.train.precision
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    key = f"{name}, torch {torch.__version__}, {precision}, {torch.get_num_threads()} threads"
    path = runs_dir / FILE
    with suppress(OSError):  # a directory that cannot be written is no matter of this file
        runs_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            known = _read(path)
            if key not in known:
                known[key] = _look(device, precision)
                aside = path.with_name(f".{FILE}.{os.getpid()}")
                aside.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")
                os.replace(aside, path)
    found = Kernels(**(_read(path).get(key) or _look(device, precision)))
    return found._replace(compile=_compiles(config, found, model))


def _look(device: torch.device, precision: str) -> dict[str, Any]:
    return {
        "attention": "sdpa" if device.type == "cuda" else "matmul",
        "grouped": "loop" if precision == "fp64" else "torch",
        "compiler": has_compiler(device),
        "peak_flops": peak_flops(device, DTYPES[precision]),
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}


def _compiles(config: ExperimentConfig, found: Kernels, model: MoETransformer) -> bool:
    wanted = config.run.compile
    if wanted != "auto" or not found.compiler:
        return wanted == "true" and found.compiler
    work = step_flops(model, config.global_bsz, config.seq_len) * config.train.steps
    return work / (0.5 * found.peak_flops) > EARNED


def has_compiler(device: torch.device) -> bool:
    """Whether torch.compile has what it needs: a C++ compiler, and triton on a GPU."""
    if device.type == "cuda":
        try:
            import triton  # noqa: F401  # pyright: ignore[reportMissingImports]
        except ImportError:
            return False
    return any(shutil.which(each) for each in (os.environ.get("CXX"), "g++", "clang++") if each)


@torch.no_grad()
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product on this device, the best of a few."""
    size = SIZES[device.type]
    one, other = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(REPEATS):
        began = time.perf_counter()
        one @ other
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def compiled(model: nn.Module) -> nn.Module:
    """The model compiled for the one shape that a run's passes have."""
    return torch.compile(model, dynamic=False)  # pyright: ignore[reportReturnType]

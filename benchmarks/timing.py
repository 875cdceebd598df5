"""Time measurement for the benchmarks, and a description of the machine."""

import importlib.metadata
import os
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch


class Seconds(NamedTuple):
    """The duration of a call, in seconds.

    Attributes:
        own: the time to compare by. This is process time for one CPU thread, because other
            processes may be running; otherwise it is wall time.
        wall: wall time.
    """

    own: float
    wall: float


def timed(act: Callable[[], object], device: torch.device) -> Seconds:
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    if device.type == "cuda":
        torch.cuda.synchronize()
    process, clock = time.process_time(), time.perf_counter()
    act()
    if device.type == "cuda":
        torch.cuda.synchronize()
    wall = time.perf_counter() - clock
    return Seconds(time.process_time() - process if alone else wall, wall)


def device_here() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def header(threads: int, *packages: str) -> str:
    """The versions of torch and other packages, the device, the threads and the load."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", *packages)]
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return ", ".join([*versions, where, f"{threads} threads, load {os.getloadavg()[0]:.1f}"])


def _processor() -> str:
    """The name of the processor, and its bf16 instructions, which decide the speed of bf16."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor() or platform.machine()
    text = cpuinfo.read_text()
    names = re.findall(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    bf16 = [flag for flag in ("avx512_bf16", "amx_bf16") if re.search(rf"\b{flag}\b", text)]
    return f"{names[0] if names else platform.machine()} ({' '.join(bf16) or 'no bf16 products'})"

"""How benchmarks take time, and how they name the machine that they ran on."""

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
    """What an act took.

    Attributes:
        own: what entrants are compared by: of the process where it has one thread of a CPU, since
            others may be at work there; else of the clock.
        wall: of the clock.
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
    """The versions of torch and of packages, the device, and what else goes on there."""
    versions = [f"{each} {importlib.metadata.version(each)}" for each in ("torch", *packages)]
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return ", ".join([*versions, where, f"{threads} threads, load {os.getloadavg()[0]:.1f}"])


def _processor() -> str:
    """Its name, and which instructions for bf16 it has, on which bf16 depends more than on it."""
    known = Path("/proc/cpuinfo")
    if not known.exists():
        return platform.processor() or platform.machine()
    text = known.read_text()
    names = re.findall(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    bf16 = [each for each in ("avx512_bf16", "amx_bf16") if re.search(rf"\b{each}\b", text)]
    return f"{names[0] if names else platform.machine()} ({' '.join(bf16) or 'no bf16 products'})"

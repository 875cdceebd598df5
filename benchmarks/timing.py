"""How benchmarks take time, and how they name the machine that they ran on."""

import importlib.metadata
import os
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch


def timed(act: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Seconds of the process (on a GPU, of the clock), and of the clock."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began, wall = time.process_time(), time.perf_counter()
    act()
    if device.type == "cuda":
        torch.cuda.synchronize()
    wall = time.perf_counter() - wall
    return (wall if device.type == "cuda" else time.process_time() - began), wall


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

"""The GPU of this machine, its driver and the versions of what moebench needs, as JSON.

python benchmarks/gpu_machine.py
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PACKAGES = (
    *("torch", "triton", "transformers", "hydra-core", "omegaconf", "jaxtyping", "beartype"),
    *("numpy", "pandas", "pytest", "safetensors", "tokenizers", "typer"),
)


def versions() -> dict[str, str]:
    """The packages that are there."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def gpu() -> dict[str, Any]:
    """The first GPU that torch can use; `card` is None without one, and `why` says why."""
    try:
        import torch
    except Exception as error:  # a broken installation raises many types
        return {"card": None, "why": f"torch does not load: {type(error).__name__}: {error}"}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available:
        built = "finds no device" if torch.version.cuda else "is built without CUDA"
        why = str(warned[0].message).split(". ")[0] if warned else f"torch {built}"
        return {"card": None, "why": why}
    try:
        torch.ones(1, device="cuda").item()
        free, total = torch.cuda.mem_get_info()
    except RuntimeError as error:  # another program has it, or it is full
        return {"card": None, "why": f"the GPU cannot be used: {str(error).splitlines()[0]}"}
    return {
        "card": torch.cuda.get_device_name(),
        "capability": list(torch.cuda.get_device_capability()),
        "gpus": torch.cuda.device_count(),
        "memory": total,
        "in use by others": max(0, total - free - torch.cuda.memory_reserved()),
        "cuda": torch.version.cuda,
        "driver": _driver(),
    }


def source() -> str:
    """A hash of the code and presets that the figures come from."""
    folders = ((ROOT / name).rglob("*") for name in ("moebench", "conf", "benchmarks"))
    paths = (path for folder in folders for path in folder if path.suffix in (".py", ".yaml"))
    hashed = hashlib.sha256()
    for path in sorted(paths):
        hashed.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return hashed.hexdigest()[:12]


def _driver() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.stdout.split("\n")[0].strip() or None


def main() -> None:
    parser = argparse.ArgumentParser(description="The GPU of this machine, and versions, as JSON.")
    parser.parse_args()
    about = {
        **gpu(),
        "source": source(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "versions": versions(),
    }
    print(json.dumps(about))


if __name__ == "__main__":
    main()

"""Which kernels compute the experts of a run: torch's grouped product, or those in Triton."""

import os
import re
from functools import lru_cache
from importlib.util import find_spec

import torch

from moebench.config.schema import ExperimentConfig
from moebench.errors import ConfigError

TORCH, TRITON = "grouped_mm", "triton"  # as a manifest names them
NAMES = {"torch": TORCH, "triton": TRITON}  # values of `run.experts` that are typed
OLDEST = (3, 6)  # version of Triton
CAPABILITY = (8, 0)  # the lowest
WITH_BF16 = (9, 10)  # major compute capabilities for which torch has a grouped kernel in bf16
TORCH_INSTEAD = "use run.experts=torch"


def automatic(precision: str, device: torch.device) -> str:
    """What `run.experts=auto` means: Triton where torch has no grouped kernel of its own.

    Without one, torch copies the ends of the groups to the host and multiplies group by group.
    """
    if device.type != "cuda" or interpreted():
        return TORCH
    if precision == "bf16" and torch.cuda.get_device_capability(device)[0] in WITH_BF16:
        return TORCH
    return TORCH if trouble(precision, device) else TRITON


def check_experts(config: ExperimentConfig, device: torch.device, kernel: str = "") -> None:
    """Raise ConfigError if the experts of a run would be Triton's, and these do not work here.

    Args:
        kernel: of the run; "": as `run.experts` says.
    """
    wanted = config.run.experts
    if (kernel or wanted) == TRITON and (why := trouble(config.train.precision, device)):
        raise ConfigError(f"run.experts={wanted}: {why}")


def trouble(precision: str, device: torch.device) -> str:
    """Why the Triton kernels do not work on a device, and the remedy; "" if they do."""
    if precision == "fp64":
        return f"has no kernels for train.precision=fp64; {TORCH_INSTEAD}"
    if find_spec("triton") is None:
        install = f"pip install 'triton>={_dotted(OLDEST)}'"
        return f"needs triton, which is not installed; {install}, or {TORCH_INSTEAD}"
    version = _version()
    if version < OLDEST:
        needed = f"needs triton {_dotted(OLDEST)} or newer, and {_dotted(version)} is installed"
        return f"{needed}; install a newer torch, which brings it, or {TORCH_INSTEAD}"
    if interpreted():
        return ""
    if device.type != "cuda":
        return f"needs a GPU, and the run is on the CPU; {TORCH_INSTEAD}"
    capability = torch.cuda.get_device_capability(device)
    if capability < CAPABILITY:
        name = f"{torch.cuda.get_device_name(device)} has {_dotted(capability)}"
        needed = f"needs a GPU of compute capability {_dotted(CAPABILITY)} or newer, and {name}"
        return f"{needed}; {TORCH_INSTEAD}"
    if why := _fails(str(device)):
        return f"triton {_dotted(version)} does not work here ({why}); {TORCH_INSTEAD}"
    return ""


def interpreted() -> bool:
    """Whether Triton computes on the CPU, slowly: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@lru_cache
def _fails(device: str) -> str:
    """Why a small kernel does not run, such as for want of a C compiler; "" if it does."""
    from moebench.model.fused import tile_map

    try:
        ends = torch.tensor([3, 3, 70], dtype=torch.int32, device=device)
        found = tile_map(ends, 70, torch.float32).tolist()
    except Exception as error:  # Triton raises many types
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    right = [[0, 2, 2, -1], [0, 3, 67]]
    return "" if [found[0], found[1][:3]] == right else "a kernel computes wrong numbers"


def _version() -> tuple[int, ...]:
    import triton  # pyright: ignore[reportMissingImports]

    return tuple(map(int, re.findall(r"\d+", triton.__version__)[:2]))


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))

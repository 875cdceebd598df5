"""The device that runs take on this machine, and the precision that suits it.

torch is imported only where there is a driver, and only when a function is called.
"""

import os
import warnings
from pathlib import Path

from moebench.errors import ConfigError

DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/dxg"))  # Linux, and Linux under Windows
BF16 = (8, 0)  # the compute capability from which GPUs compute products in bf16


def capability(device: str) -> tuple[int, int] | None:
    """The compute capability of the GPU that a run with this `run.device` takes here.

    None if the run takes the CPU. Raises ConfigError for a GPU that cannot be used at present.
    """
    if device == "cpu" or not any(driver.exists() for driver in DRIVERS):
        return None
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of an old driver; `moebench doctor` says it
        if not torch.cuda.is_available():
            return None
    try:
        return torch.cuda.get_device_capability()
    except RuntimeError as error:
        raise unusable(device, error) from None


def suited_precision(device: str) -> str:
    """What `train.precision=auto` means for runs with this `run.device` on this machine.

    `bf16` on a GPU that computes products in it, else `fp32`.
    """
    found = capability(device)
    return "bf16" if found is not None and found >= BF16 else "fp32"


def visible_gpus() -> list[str]:
    """The GPUs that this process sees, each as a value of CUDA_VISIBLE_DEVICES."""
    if not any(driver.exists() for driver in DRIVERS):
        return []
    import torch

    count = torch.cuda.device_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = range(count) if given is None else given.split(",")
    return [str(name).strip() for name in names][:count]


def free_bytes() -> int:
    """Free memory of the GPU that a run takes here; 0 where there is none."""
    if capability("auto") is None:
        return 0
    import torch

    return torch.cuda.mem_get_info()[0]


def unusable(device: str, error: Exception) -> ConfigError:
    """The error of a GPU that is there and refuses to work: it is taken, full or broken."""
    return ConfigError(
        f"run.device={device}: the GPU cannot be used ({str(error).splitlines()[0]}); wait until "
        "other programs on it have ended, name another one in CUDA_VISIBLE_DEVICES, or add "
        "run.device=cpu"
    )

"""How many arms of a sweep one process trains at once, and where."""

from pathlib import Path

from moebench.config.cost import memory_bytes
from moebench.config.schema import ExperimentConfig

SHARE = 0.7  # of the free memory of a GPU that a stack is planned to take
MOST = 64  # arms of a stack by itself: beyond, a GPU is full whatever the model
CUDA_GROUPS = 1023  # most that a grouped product on a GPU takes
BYTE_VOCABULARY = 257
DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/dxg"))  # Linux, and Linux under Windows


def stack_size(config: ExperimentConfig) -> int:
    """Arms of this shape in a stack: as `run.stack` says, and on a GPU as far as it can."""
    wanted = config.run.stack
    if wanted != "auto":
        size = int(wanted)
        return min(size, _most(config)) if size > 1 and on_gpu(config) else size
    return min(_most(config), MOST, _fitting(config)) if on_gpu(config) else 1


def on_gpu(config: ExperimentConfig) -> bool:
    """Whether runs of this config take a GPU. Imports torch only where there may be one."""
    if config.run.device == "cpu" or not any(each.exists() for each in DRIVERS):
        return False
    import torch

    return torch.cuda.is_available()


def _most(config: ExperimentConfig) -> int:
    return max(1, CUDA_GROUPS // config.model.num_experts)


def _fitting(config: ExperimentConfig) -> int:
    import torch

    free, _ = torch.cuda.mem_get_info()
    bytes_known = config.data.tokenizer == "bytes"
    vocabulary = BYTE_VOCABULARY if bytes_known else config.data.vocab_size
    return max(1, int(SHARE * free / memory_bytes(config, vocabulary)))

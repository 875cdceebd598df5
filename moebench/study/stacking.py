"""How many runs of a sweep one process trains at once, and on which device."""

from moebench import device
from moebench.config.cost import memory_bytes
from moebench.config.schema import ExperimentConfig

MEMORY_SHARE = 0.7  # of the free memory of a GPU, for an automatic stack
MOST = 64  # runs in an automatic stack: larger stacks are not faster, for any model
CUDA_GROUPS = 1023  # maximum number of groups of a grouped product on a GPU
BYTE_VOCABULARY = 257


def stack_size(config: ExperimentConfig, processes: int = 1) -> int:
    """Runs of this shape in a stack: `run.stack`, within the limits of a GPU.

    Args:
        processes: that share the GPU.
    """
    wanted = config.run.stack
    if wanted != "auto":
        size = int(wanted)
        return min(size, _most(config)) if size > 1 and on_gpu(config) else size
    return min(_most(config), MOST, _fitting(config, processes)) if on_gpu(config) else 1


def on_gpu(config: ExperimentConfig) -> bool:
    """Whether runs of this config use a GPU."""
    return device.capability(config.run.device) is not None


def _most(config: ExperimentConfig) -> int:
    return max(1, CUDA_GROUPS // config.model.num_experts)


def _fitting(config: ExperimentConfig, processes: int) -> int:
    import torch

    try:
        free, _ = torch.cuda.mem_get_info()
    except RuntimeError as error:
        raise device.unusable(config.run.device, error) from None
    of_bytes = config.data.tokenizer == "bytes"
    vocabulary = BYTE_VOCABULARY if of_bytes else config.data.vocab_size
    return max(1, int(MEMORY_SHARE * free / processes / memory_bytes(config, vocabulary)))

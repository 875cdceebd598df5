"""How many runs of a sweep one process trains at once, and on which device."""

import math

from moebench import device
from moebench.config.cost import memory_bytes
from moebench.config.schema import ExperimentConfig

MEMORY_SHARE = 0.7  # of the free memory of a GPU, for an automatic stack
MOST = 64  # runs in an automatic stack: larger stacks are not faster, for any model
GROUPS = 1023  # maximum number of groups in torch's kernel of a grouped product
WITH_KERNEL = (9, 10)  # major compute capabilities that have it, in bf16 alone
BYTE_VOCABULARY = 257


def stack_size(config: ExperimentConfig, processes: int = 1, gpu_bytes: int | None = None) -> int:
    """Runs of this shape in a stack: `run.stack`, within the limits of a GPU.

    Args:
        processes: that share the GPU.
        gpu_bytes: free memory of the GPU of a worker, 0 without one; None: this machine's.
    """
    kind = config.run.device
    there = on_gpu(kind) if gpu_bytes is None else bool(gpu_bytes) and kind != "cpu"
    wanted = config.run.stack
    if wanted != "auto":
        size = int(wanted)
        if size > 1 and there:
            return int(min(size, _most(config, gpu_bytes is None)))
        return size
    if not there:
        return 1
    free = _free(config) if gpu_bytes is None else gpu_bytes
    most = _most(config, gpu_bytes is None)
    return int(min(most, MOST, _fitting(config, free / processes)))


def on_gpu(wanted: str) -> bool:
    """Whether runs of this `run.device` use a GPU here."""
    return device.capability(wanted) is not None


def _most(config: ExperimentConfig, here: bool) -> float:
    """Runs whose experts one grouped product takes. Only torch's own kernel has a limit."""
    found = device.capability(config.run.device) if here else None
    without = found is not None and found[0] not in WITH_KERNEL
    if config.run.experts == "triton" or config.train.precision != "bf16" or without:
        return math.inf
    return max(1, GROUPS // config.model.num_experts)


def _free(config: ExperimentConfig) -> int:
    try:
        return device.free_bytes()
    except RuntimeError as error:
        raise device.unusable(config.run.device, error) from None


def _fitting(config: ExperimentConfig, free: float) -> int:
    of_bytes = config.data.tokenizer == "bytes"
    vocabulary = BYTE_VOCABULARY if of_bytes else config.data.vocab_size
    return max(1, int(MEMORY_SHARE * free / memory_bytes(config, vocabulary)))

"""Which jobs of a plan one process trains side by side."""

import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from itertools import islice

from moebench.config.compose import from_dict
from moebench.config.schema import ExperimentConfig
from moebench.config.stacking import AUTO, CUDA_GROUPS, shape_of
from moebench.study.plan import Job

SHARE = 0.8  # of a GPU's free memory that a stack may be thought to take


def take_stack(waiting: Sequence[Job]) -> list[Job]:
    """The first job, and as many later ones of its shape as are to be trained beside it.

    `run.stack=auto` takes 1 on a CPU, where processes are faster, and on a GPU as many as its free
    memory is thought to hold (`arm_bytes`) and one grouped product takes.
    """
    first = waiting[0].config
    run = first.get("run", {})
    wanted = run.get("stack", AUTO)
    if wanted != AUTO:
        size = int(wanted)
    elif run.get("device") == "cpu" or not (free := free_gpu_bytes()):
        size = 1
    else:
        config = from_dict(first)
        size = min(int(SHARE * free / arm_bytes(config)), CUDA_GROUPS // config.model.num_experts)
    shape = shape_of(first)
    alike = (job for job in waiting if job is waiting[0] or shape_of(job.config) == shape)
    return list(islice(alike, max(1, size)))


def arm_bytes(config: ExperimentConfig) -> int:
    """About what one arm of a stack needs on a GPU, in bytes.

    Parameters in fp32 with gradient and two moments, and what a pass keeps for its backward: per
    token and layer some ten rows of d_model, four of each selected expert and of the router, and
    per token three rows of logits.
    """
    model, size = config.model, 2 if config.train.precision == "bf16" else 4
    vocab = 256 if config.data.tokenizer == "bytes" else config.data.vocab_size
    experts = (model.num_experts + model.num_shared_experts) * 3 * model.d_model * model.expert_dim
    layer = experts + 4 * model.d_model**2 + model.num_experts * model.d_model
    parameters = model.num_layers * layer + 2 * vocab * model.d_model
    chosen = model.top_k + model.num_shared_experts
    kept = 10 * model.d_model + chosen * (model.d_model + 4 * model.expert_dim)
    token = model.num_layers * (kept * size + 16 * model.num_experts) + 12 * vocab
    sequences = config.run.device_bsz or config.global_bsz
    return 16 * parameters + token * sequences * config.seq_len


@cache
def free_gpu_bytes() -> int:
    """Free memory of the first GPU; 0 where there is none."""
    if shutil.which("nvidia-smi") is None:
        return 0
    asked = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout
        return int(told.split()[0]) * 2**20
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return 0

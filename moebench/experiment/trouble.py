"""What can go wrong in a run: a full disk, too little memory."""

import errno
import os
from pathlib import Path

import torch

from moebench.config.schema import ExperimentConfig
from moebench.disk import FULL, why_not_written
from moebench.errors import CONTINUES, OUT_OF_MEMORY, TrainingError, lacks_memory
from moebench.records import Record

FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)  # no right to write, or a fault


def explained(
    error: Exception,
    config: ExperimentConfig,
    record: Record,
    device: torch.device,
    stacked: int,
) -> Exception:
    """A TrainingError with a remedy, for memory or a disk that is full; else the error itself."""
    if isinstance(error, torch.OutOfMemoryError) or lacks_memory(error):
        return TrainingError(
            f"run.device_bsz={config.run.device_bsz or config.global_bsz}: {OUT_OF_MEMORY}"
            f"{device}{_in_use(device, stacked)} ({_first_line(error)}); take a "
            "smaller divisor of global_bsz"
            + (", a smaller run.stack" if stacked > 1 else "")
            + ", or a smaller model"
        )
    if config.run.deterministic and "deterministic implementation" in str(error):
        operation = str(error).split(" does ")[0]
        return TrainingError(
            f"run.deterministic=true: {operation} has no fixed order on {device}; use "
            "run.deterministic=false, or run.device=cpu"
        )
    if number := _write_errno(error, record):
        remedy = "free some space" if number in FULL else "make it writable"
        why = why_not_written(record.path, OSError(number, os.strerror(number)))
        return TrainingError(
            f"{record.path}: cannot be written ({why}); {remedy}, and "
            f"{CONTINUES} from the last checkpoint"
        )
    return error


def _in_use(device: torch.device, stacked: int) -> str:
    """The number of runs, and the most memory that was in use on a GPU."""
    runs = f" with {stacked} runs stacked" if stacked > 1 else ""
    if device.type != "cuda":
        return runs
    return f"{runs}, {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB in use at most"


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _write_errno(error: Exception, record: Record) -> int:
    """The errno of an error in writing the record; 0 for any other error."""
    if not isinstance(error, OSError) or error.errno not in {*FULL, *FORBIDDEN}:
        return 0
    inside = error.filename is None or Path(error.filename).is_relative_to(record.path)
    return error.errno if inside else 0

"""A run's state at a step, on disk: safetensors and JSON, checksummed, written aside and renamed.

`checkpoints/step-N/` holds `model.safetensors`, `optimizer.safetensors` and `state.json`, which
names the sha256 of both. A directory with a whole `state.json` is a whole checkpoint.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from moebench.errors import RecordError
from moebench.records import sha256

KEPT = 2


def save_checkpoint(
    directory: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer
) -> Path:
    """Write `directory/step-<step>` and remove all but the last two checkpoints."""
    final = directory / f"step-{step}"
    aside = directory / f".step-{step}.{os.getpid()}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        save_file(_contiguous(model.state_dict()), aside / "model.safetensors")
        save_file(_contiguous(_moments(model, optimizer)), aside / "optimizer.safetensors")
        files = ("model.safetensors", "optimizer.safetensors")
        state = {"step": step, "sha256": {name: sha256(aside / name) for name in files}}
        (aside / "state.json").write_text(json.dumps(state, indent=2) + "\n")
        for path in aside.iterdir():
            _sync(path)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(aside, final)
        _sync(directory)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    for old in steps_kept(directory)[:-KEPT]:
        shutil.rmtree(directory / f"step-{old}")
    return final


def steps_kept(directory: Path) -> list[int]:
    """The steps of whole checkpoints, ascending."""
    return sorted(
        int(path.parent.name.removeprefix("step-")) for path in directory.glob("step-*/state.json")
    )


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> int:
    """Put a checkpoint's state into a model, and an optimizer if given; returns its step.

    Raises:
        RecordError: if a file is missing, does not match its checksum or does not fit the model.
    """
    try:
        state: dict[str, Any] = json.loads((path / "state.json").read_bytes())
        for name, digest in state["sha256"].items():
            if sha256(path / name) != digest:
                raise RecordError(f"{path / name}: does not match its checksum; remove {path}")
        model.load_state_dict(load_file(path / "model.safetensors"))
        if optimizer is not None:
            _restore(load_file(path / "optimizer.safetensors"), model, optimizer)
        step = int(state["step"])
        if path.name != f"step-{step}":
            raise RecordError(f"{path}: holds the state of step {step}; remove it")
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise RecordError(f"{path}: cannot be loaded ({reason}); remove it") from None
    return step


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors by parameter name, so that their order means nothing."""
    return {
        f"{name}/{kind}": value
        for name, parameter in model.named_parameters()
        for kind, value in optimizer.state[parameter].items()
    }


def _restore(
    moments: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    for name, parameter in model.named_parameters():
        optimizer.state[parameter] = {
            key.rsplit("/", 1)[1]: value.to(parameter.device)
            for key, value in moments.items()
            if key.rsplit("/", 1)[0] == name
        }


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

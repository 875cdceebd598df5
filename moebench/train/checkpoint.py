"""A run's state at a step, on disk: safetensors and JSON, checksummed, written aside and renamed.

`checkpoints/step-N/` holds `model.safetensors`, `optimizer.safetensors`, `balance.safetensors` if
a balance term or method carries something, and `state.json`, which names the sha256 of each. A
directory with a whole `state.json` is a whole checkpoint.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from moebench.disk import read_json, replacing_folder, sha256, write_json
from moebench.errors import RecordError

KEPT = 2


def save_checkpoint(
    directory: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    balance: Sequence[Any] = (),
    load: Tensor | None = None,
) -> Path:
    """Write `directory/step-<step>` and remove all but the last two checkpoints."""
    parts = {
        "model": model.state_dict(),
        "optimizer": _moments(model, optimizer),
        "balance": _carried(balance),
        "load": {} if load is None else {"recent": load},
    }
    files = {f"{name}.safetensors": tensors for name, tensors in parts.items() if tensors}
    final = directory / f"step-{step}"
    with replacing_folder(final) as aside:
        for name, tensors in files.items():
            save_file(_contiguous(tensors), aside / name)
        state = {"step": step, "sha256": {name: sha256(aside / name) for name in files}}
        write_json(aside / "state.json", state)
    for old in steps_kept(directory)[:-KEPT]:
        shutil.rmtree(directory / f"step-{old}")
    return final


def steps_kept(directory: Path) -> list[int]:
    """The steps of whole checkpoints, ascending."""
    return sorted(
        int(path.parent.name.removeprefix("step-")) for path in directory.glob("step-*/state.json")
    )


class Loaded(NamedTuple):
    """What a checkpoint says beside the weights: its step, what terms and methods carry, and the
    recent loads of the experts (None in checkpoints that lack them)."""

    step: int
    balance: list[Any]
    load: Tensor | None


def load_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    device: torch.device | None = None,
    kinds: Sequence[type | None] = (),
) -> Loaded:
    """Put a checkpoint's state into a model, and an optimizer if given.

    Args:
        device: of what is carried.
        kinds: the NamedTuple of each balance term and method that carries something.

    Raises:
        RecordError: if a file is missing, does not match its checksum or does not fit the model or
            what is to be carried.
    """
    try:
        state = read_json(path / "state.json")
        for name, digest in state["sha256"].items():
            if sha256(path / name) != digest:
                raise RecordError(f"{path / name}: does not match its checksum; remove {path}")
        model.load_state_dict(load_file(path / "model.safetensors"))
        if optimizer is not None:
            _restore(load_file(path / "optimizer.safetensors"), model, optimizer)
        step = int(state["step"])
        balance: list[Any] = [None] * len(kinds)
        if any(kinds):
            found = load_file(path / "balance.safetensors", device=str(device or "cpu"))
            for number, kind in enumerate(kinds):
                if kind is not None:
                    names: tuple[str, ...] = kind._fields  # pyright: ignore
                    balance[number] = kind(**{each: found[f"{number}/{each}"] for each in names})
        load = None
        if "load.safetensors" in state["sha256"]:
            load = load_file(path / "load.safetensors", device=str(device or "cpu"))["recent"]
        if path.name != f"step-{step}":
            raise RecordError(f"{path}: holds the state of step {step}; remove it")
    except torch.OutOfMemoryError:
        raise
    except (OSError, LookupError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise RecordError(f"{path}: cannot be loaded ({reason}); remove it") from None
    return Loaded(step, balance, load)


def _carried(balance: Sequence[Any]) -> dict[str, Tensor]:
    return {
        f"{number}/{name}": value
        for number, state in enumerate(balance)
        if state is not None
        for name, value in state._asdict().items()
    }


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

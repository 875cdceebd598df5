"""A run's state at a step, on disk: safetensors and JSON, checksummed, written aside and renamed.

`checkpoints/step-N/` holds `model.safetensors`, `optimizer.safetensors`, `balance.safetensors` if a
balance term or method has a state, `load.safetensors`, and `state.json` with the sha256 of each. A
directory with a `state.json` is a whole checkpoint. `record.json` protects the run's record.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from moebench.disk import read_json, replacing_folder, sha256, write_json
from moebench.errors import RecordError
from moebench.protection import steps_kept, write_protection
from moebench.train.build import State
from moebench.train.optimizer import AdamW
from moebench.train.step import Objective, state_types

KEPT = 2


def save_checkpoint(
    directory: Path, state: State, protection: Mapping[str, Any] | None = None
) -> Path:
    """Write `directory/step-<step>` and remove all but the last two checkpoints.

    Args:
        protection: of the run's record; see `moebench.protection`.
    """
    parts = {
        "model": state.model.state_dict(),
        "optimizer": _moments(state.model, state.optimizer),
        "balance": _balance_tensors(state.balance or ()),
        "load": {} if state.load is None else {"recent": state.load},
    }
    files = {f"{name}.safetensors": tensors for name, tensors in parts.items() if tensors}
    final = directory / f"step-{state.step}"
    with replacing_folder(final) as aside:
        for name, tensors in files.items():
            save_file(_contiguous(tensors), aside / name)
        digests = {name: sha256(aside / name) for name in files}
        write_json(aside / "state.json", {"step": state.step, "sha256": digests})
        if protection is not None:
            write_protection(aside, protection)
    for old in steps_kept(directory)[:-KEPT]:
        shutil.rmtree(directory / f"step-{old}")
    return final


class Loaded(NamedTuple):
    """A checkpoint without its weights.

    Attributes:
        step: its step.
        balance: the state of each balance term and method; None for one without.
        load: recent loads of the experts; None in checkpoints that lack them.
    """

    step: int
    balance: list[Any]
    load: Tensor | None


def load_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: AdamW | None = None,
    device: torch.device | None = None,
    types: Sequence[type | None] = (),
) -> Loaded:
    """Load a checkpoint's weights into a model, and its moments into an optimizer if given.

    Args:
        device: of the states and loads.
        types: the NamedTuple of each balance term's and method's state; None for one without.

    Raises:
        RecordError: if a file is missing, does not match its checksum, or does not fit the model or
            the states.
    """
    try:
        content = read_json(path / "state.json")
        for name, digest in content["sha256"].items():
            if sha256(path / name) != digest:
                raise RecordError(f"{path / name}: does not match its checksum; remove {path}")
        model.load_state_dict(load_file(path / "model.safetensors"))
        if optimizer is not None:
            _restore(load_file(path / "optimizer.safetensors"), model, optimizer)
        step = int(content["step"])
        balance: list[Any] = [None] * len(types)
        if any(types):
            tensors = load_file(path / "balance.safetensors", device=str(device or "cpu"))
            for number, kind in enumerate(types):
                if kind is not None:
                    fields: tuple[str, ...] = kind._fields  # pyright: ignore
                    balance[number] = kind(**{name: tensors[f"{number}/{name}"] for name in fields})
        load = None
        if "load.safetensors" in content["sha256"]:
            load = load_file(path / "load.safetensors", device=str(device or "cpu"))["recent"]
        if path.name != f"step-{step}":
            raise RecordError(f"{path}: holds the state of step {step}; remove it")
    except torch.OutOfMemoryError:
        raise
    except (OSError, LookupError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise RecordError(f"{path}: cannot be loaded ({reason}); remove it") from None
    return Loaded(step, balance, load)


def restore(state: State, path: Path, objective: Objective, device: torch.device) -> None:
    """Set a run's state to that of a checkpoint. Raises as `load_checkpoint`."""
    types = state_types(objective)
    loaded = load_checkpoint(path, state.model, state.optimizer, device, types)
    state.step, state.balance, state.load = loaded


def _balance_tensors(balance: Sequence[Any]) -> dict[str, Tensor]:
    return {
        f"{number}/{name}": value
        for number, state in enumerate(balance)
        if state is not None
        for name, value in state._asdict().items()
    }


def _moments(model: nn.Module, optimizer: AdamW) -> dict[str, Tensor]:
    """The optimizer's tensors by parameter name, so that their order does not matter."""
    return {
        f"{name}/{kind}": value
        for name, parameter in model.named_parameters()
        for kind, value in optimizer.state[parameter].items()
    }


def _restore(moments: dict[str, Tensor], model: nn.Module, optimizer: AdamW) -> None:
    for name, parameter in model.named_parameters():
        optimizer.state[parameter] = {
            key.rsplit("/", 1)[1]: value.to(parameter.device)
            for key, value in moments.items()
            if key.rsplit("/", 1)[0] == name
        }


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}

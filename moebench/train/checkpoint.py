"""A run's state at a step, on disk: safetensors and JSON, checksummed, written aside and renamed.

`checkpoints/step-N/` holds `model.safetensors`, `optimizer.safetensors`, `balance.safetensors` if a
balance term or method has a state, `load.safetensors`, `average.safetensors` with `optim.ema`, and
`state.json` with the sha256 of each.
`record.json` protects the run's record.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from moebench.config.treatment import Meaning, Treatment
from moebench.disk import (
    open_regular,
    remove_folder,
    remove_leftovers,
    replacing_folder,
    sha256,
    write_json,
)
from moebench.errors import RecordError, TrainingError
from moebench.model.transformer import MoETransformer
from moebench.protection import STATE, steps_kept, write_protection
from moebench.record_files import CHECKPOINT, read_object
from moebench.train.build import State, blank_model
from moebench.train.optimizer import AdamW
from moebench.train.step import Objective, method_states, state_types

KEPT = 2
# A file has at most so many times the bytes of the weights, and so many more for states.
MOST_TIMES, MOST_MORE = 8, 2**28


def save_checkpoint(
    directory: Path, state: State, protection: Mapping[str, Any] | None = None
) -> Path:
    """Write `directory/step-<step>` and remove all but the last two checkpoints.

    Args:
        protection: of the run's record; see `moebench.protection`.

    Raises:
        TrainingError: before anything is written, if a weight or a moment is not finite.
    """
    parts = {
        "model": state.model.state_dict(),
        "optimizer": _moments(state.model, state.optimizer),
        "balance": _balance_tensors(state.balance or ()),
        "load": {} if state.load is None else {"recent": state.load},
        "average": state.average or {},
    }
    files = {f"{name}.safetensors": _contiguous(part) for name, part in parts.items() if part}
    _check_finite(files, state.step)
    final = directory / f"step-{state.step}"
    with replacing_folder(final) as aside:
        for name, tensors in files.items():
            # not save_file: it writes to a file of its own beside, which a crash would leave there
            (aside / name).write_bytes(save(tensors))
        digests = {name: sha256(aside / name) for name in files}
        protected = protection is not None
        write_json(aside / STATE, {"step": state.step, "protected": protected, "sha256": digests})
        if protection is not None:
            write_protection(aside, protection)
    for old in steps_kept(directory)[:-KEPT]:
        remove_folder(directory / f"step-{old}")
    with suppress(OSError):
        remove_leftovers(directory)  # of a folder that could not be deleted at once
    return final


class Loaded(NamedTuple):
    """A checkpoint without its weights.

    Attributes:
        step: its step.
        balance: the state of each balance term and method; None for one without.
        load: recent loads of the experts; None in checkpoints that lack them.
        average: of the weights, by name, which is evaluated in place of them; None without one.
    """

    step: int
    balance: list[Any]
    load: Tensor | None
    average: dict[str, Tensor] | None


def load_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: AdamW | None = None,
    device: torch.device | None = None,
    objective: Objective | None = None,
    *,
    averages: bool = False,
) -> Loaded:
    """Load a checkpoint's weights into a model, and its moments into an optimizer if given.

    Args:
        device: of the states and loads.
        objective: of the run, whose balance terms and methods may have a state.
        averages: whether the run averages its weights, so that the checkpoint must have an average.

    Raises:
        RecordError: if a file is missing, does not match its checksum, or does not fit the model or
            the states.
    """
    types = state_types(objective) if objective is not None else []
    try:
        content = read_object(path / STATE, CHECKPOINT)
        digests = content["sha256"]
        needed = ["model", *(["optimizer"] if optimizer else []), *(["balance"] * any(types))]
        needed += ["average"] * averages
        _check_files(path, digests, needed, model)
        model.load_state_dict(load_file(path / "model.safetensors"))
        if optimizer is not None:
            _restore(load_file(path / "optimizer.safetensors"), model, optimizer)
        step = content["step"]
        balance: list[Any] = [None] * len(types)
        if any(types):
            tensors = load_file(path / "balance.safetensors", device=str(device or "cpu"))
            for number, kind in enumerate(types):
                if kind is not None:
                    fields: tuple[str, ...] = kind._fields  # pyright: ignore
                    balance[number] = kind(**{name: tensors[f"{number}/{name}"] for name in fields})
            _check_states(balance, objective, model)
        load = None
        if "load.safetensors" in digests:
            load = load_file(path / "load.safetensors", device=str(device or "cpu"))["recent"]
        average = None
        if averages:
            average = load_file(path / "average.safetensors", device=str(device or "cpu"))
            _check_average(average, model)
        if path.name != f"step-{step}":
            raise RecordError(f"{path}: holds the state of step {step}; remove it")
    except torch.OutOfMemoryError:
        raise
    except (OSError, LookupError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise RecordError(f"{path}: cannot be loaded ({reason}); remove it") from None
    return Loaded(step, balance, load, average)


def _check_files(
    path: Path, digests: Mapping[str, str], needed: Iterable[str], model: nn.Module
) -> None:
    """Raise RecordError for a file that does not match its digest, and for one that lacks."""
    weights = sum(value.nbytes for value in model.state_dict().values())
    for name, digest in digests.items():
        if sha256(path / name, MOST_MORE + MOST_TIMES * weights) != digest:
            raise RecordError(f"{path / name}: does not match its checksum; remove {path}")
    for name in needed:
        if f"{name}.safetensors" not in digests:
            raise RecordError(f"{path / STATE}: names no {name}.safetensors; remove {path}")


def check_fit(path: Path, config: Meaning, vocab_size: int, domains: int) -> None:
    """Raise RecordError if a checkpoint's weights are not those of a config's model.

    Only names and shapes are compared, and no memory is taken for a model that does not fit.
    """
    file = path / "model.safetensors"
    try:
        with open_regular(file):  # else to map it could wait for a pipe
            pass
        with safe_open(file, "pt") as content:
            found = {name: content.get_slice(name).get_shape() for name in content.keys()}  # noqa: SIM118
        if Treatment.of(config).config.model.num_layers > len(found):
            raise ValueError("has fewer tensors than the model has layers")
        with torch.device("meta"):
            model = blank_model(config, vocab_size, domains)
        wanted = {name: list(value.shape) for name, value in model.state_dict().items()}
        odd = [name for name in {*wanted, *found} if found.get(name) != wanted.get(name)]
        if odd:
            raise ValueError(f"{len(odd)} tensors are not those of the config, as {min(odd)}")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise RecordError(f"{file}: does not fit ({reason}); remove {path}") from None


def restore(state: State, path: Path, objective: Objective, device: torch.device) -> None:
    """Set a run's state to that of a checkpoint. Raises as `load_checkpoint`."""
    averages = state.average is not None
    loaded = load_checkpoint(
        path, state.model, state.optimizer, device, objective, averages=averages
    )
    state.step, state.balance, state.load, state.average = loaded


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
        found = {
            key.rsplit("/", 1)[-1]: value.to(parameter.device)
            for key, value in moments.items()
            if key.rsplit("/", 1)[0] == name
        }
        wanted = {"step": (), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
        if found and {key: value.shape for key, value in found.items()} != wanted:
            raise ValueError(f"the moments of {name} differ from it in shape")
        optimizer.state[parameter] = found


def _check_states(states: Sequence[Any], objective: Objective | None, model: nn.Module) -> None:
    """Raise ValueError for a state of another shape or type than its method begins with."""
    if objective is None or not isinstance(model, MoETransformer):
        return
    for method, state in method_states(objective, states):
        begun = method.begin(*model.router_shape, model.embedding.device)
        for name, value in begun._asdict().items() if begun is not None else ():
            found = getattr(state, name)
            if (found.shape, found.dtype) != (value.shape, value.dtype):
                raise ValueError(f"the state of {type(method).__name__} has another {name}")


def _check_average(average: Mapping[str, Tensor], model: nn.Module) -> None:
    """Raise ValueError for an average that is not one of the model's weights."""
    wanted = {name: (value.shape, value.dtype) for name, value in model.named_parameters()}
    if {name: (value.shape, value.dtype) for name, value in average.items()} != wanted:
        raise ValueError("the averaged weights differ from the weights in name, shape or type")


def _check_finite(files: Mapping[str, dict[str, Tensor]], step: int) -> None:
    """Refuse weights and moments that are not finite, although the loss may not show it."""
    for file, what in (("model.safetensors", "weight"), ("optimizer.safetensors", "moment")):
        for name, tensor in files.get(file, {}).items():
            if not torch.isfinite(tensor).all():
                raise TrainingError(f"step {step}: the {what} {name} is not finite")


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}

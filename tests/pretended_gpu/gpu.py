"""The pretended device: it computes on the host, and notes what a GPU would have done.

waits      a read by the host, a copy from or to pageable memory, a shape that depends on data
launches   operations that a GPU would start, by name
unordered  float sums by atomic additions, which have no fixed order
memory     bytes held now and at most

Operands on different devices are refused, as by CUDA. Memory that nobody wrote holds rubbish.
"""

import traceback
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from tests.pretended_gpu import kernels
from tests.pretended_gpu.memory import Memory, Pinned, Underway, fill_with_rubbish
from tests.pretended_gpu.tensor import OnGpu, on_gpu, on_host, tensors_in

EMPTY = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
NO_LAUNCH = {
    *EMPTY,
    *("_reshape_alias", "_unsafe_view", "alias", "as_strided", "detach", "diagonal", "expand"),
    *("lift_fresh", "mT", "narrow", "numpy_T", "permute", "select", "slice", "split"),
    *("split_with_sizes", "squeeze", "sym_size", "t", "transpose", "unbind", "unfold"),
    *("unsqueeze", "view", "_fused_sdp_choice"),
}
SHAPE_OF_DATA = {
    *("_assert_scalar", "_unique2", "bincount", "equal", "is_nonzero", "masked_select"),
    *("nonzero", "unique_consecutive", "unique_dim", "unique_dim_consecutive"),
}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
EFFICIENT = 2  # torch's number of the memory-efficient attention


class WaitedError(RuntimeError):
    """The host waited for the device while waiting was an error."""


class Gpu:
    """What the one pretended device does and has seen.

    Args:
        capability: of the card, as (9, 0); it decides which grouped products have a kernel.
        ties: whether `topk` takes the last of equal values, as a GPU may; a CPU takes the first.
    """

    def __init__(self, capability: tuple[int, int] = (9, 0), *, ties: bool = True) -> None:
        self.capability, self.ties = capability, ties
        self.waits_are_errors = False
        self.memory, self.pinned, self.underway = Memory(), Pinned(), Underway()
        self.waits: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
        self.unordered: Counter[str] = Counter()

    def forget(self) -> None:
        """Forget what was seen so far; memory stays as it is, and its peak begins anew."""
        for seen in (self.waits, self.launches, self.unordered):
            seen.clear()
        self.memory.peak = self.memory.live

    def wait(self, why: str) -> None:
        """Note that the host waits for the device."""
        if self.waits_are_errors:
            raise WaitedError(f"{why} at {place()}")
        self.waits[f"{place()}: {why}"] += 1

    def launch(self, name: str, number: int = 1) -> None:
        self.launches[name] += number

    def pin(self, tensor: Tensor) -> Tensor:
        return self.pinned.add(tensor.contiguous().clone())

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator on tensors of both kinds, as dispatched by torch."""
        name = func._schema.name.split("::")[1]
        if func.namespace == "moebench":  # a kernel of moebench is a function of other operators
            device = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
            return func.redispatch(device, *args, **kwargs)
        if name in COPIES:
            return COPIES[name](self, func, args, kwargs)
        asked = kwargs.get("device")
        tensors = tensors_in((args, kwargs))
        here = [each for each in tensors if isinstance(each, OnGpu)]
        if not (here if asked is None else torch.device(asked).type == "cuda"):
            if here or kwargs.get("pin_memory"):
                return self._on_host(func, args, kwargs)
            return func(*args, **kwargs)
        self._check_devices(name, tensors)
        self._note(name, args, kwargs)
        special = kernels.KERNELS.get(name)
        if special is not None:
            return special(self, func, args, kwargs)
        kwargs = {key: "cpu" if key == "device" else value for key, value in kwargs.items()}
        result = func(*on_host(args), **on_host(kwargs))
        if name in EMPTY:
            fill_with_rubbish(result)
        return _returned(func, args, kwargs, result)

    def _on_host(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs.get("pin_memory"):
            made = func(*on_host(args), **on_host({**kwargs, "pin_memory": False}))
            return self.pinned.add(fill_with_rubbish(made))
        return func(*on_host(args), **on_host(kwargs))

    def _check_devices(self, name: str, tensors: list[Tensor]) -> None:
        elsewhere = [each for each in tensors if not isinstance(each, OnGpu)]
        grouped = name.startswith(("_fused", "_foreach"))
        if name not in INDEXING and any(grouped or each.ndim for each in elsewhere):
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found cuda:0 and cpu in {name}"
            )

    def _note(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name in INDEXING:
            indices = [each for each in args[1] if each is not None]
            if not all(isinstance(each, OnGpu) for each in indices):
                self.wait(f"{name} by an index of the host")
            if any(each.dtype in (torch.bool, torch.uint8) for each in indices):
                self.wait(f"{name} by a mask")
        repeats = name == "repeat_interleave" and kwargs.get("output_size") is None
        if name in SHAPE_OF_DATA or repeats:
            self.wait(name)
        if name.rstrip("_") in ("scatter_add", "index_add") and _adds_twice(name, args):
            if not torch.are_deterministic_algorithms_enabled():
                self.unordered[f"{place()}: {name}"] += 1
            elif name.startswith("scatter") and args[0].ndim > 1:
                raise RuntimeError(f"{name} does not have a deterministic implementation")
        if name not in NO_LAUNCH and name not in COPIES:
            self.launch(name)


def _adds_twice(name: str, args: tuple[Any, ...]) -> bool:
    """Whether a float sum by index has several addends for a place."""
    target, dim, index = args[0], args[1], on_host(args[2])
    if not target.is_floating_point():
        return False
    if name.startswith("index"):
        return index.numel() != index.unique().numel()
    counts = torch.zeros(target.shape, dtype=torch.int64)
    return bool((counts.scatter_add(dim, index, torch.ones_like(index)) > 1).any())


def place() -> str:
    """The line of moebench that asked for an operation, or the node of backward that it is in."""
    for frame in reversed(traceback.extract_stack()):
        if "/moebench/" in frame.filename and "/tests/" not in frame.filename:
            line = f"{frame.filename.rpartition('/moebench/')[2]}:{frame.lineno}"
            if not line.startswith("train/gradients.py"):
                return line
            break
    node = torch._C._current_autograd_node()
    return "backward" if node is None else f"backward of {node.name()}"


def _returned(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
    """Results on the device; what was written in place is the tensor that was given."""
    schema = func._schema
    if not schema.is_mutable:
        return on_gpu(result)
    if not schema.returns:
        return None
    given = dict(zip((each.name for each in schema.arguments), args, strict=False)) | kwargs
    written = {_alias(each): given.get(each.name) for each in schema.arguments if _is_written(each)}
    several = result if len(schema.returns) > 1 else (result,)
    results = [
        written[_alias(each)] if _is_written(each) else on_gpu(value)
        for value, each in zip(several, schema.returns, strict=True)
    ]
    return tuple(results) if len(results) > 1 else results[0]


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _alias(argument: Any) -> str:
    return next(iter(argument.alias_info.before_set))


def _item(gpu: Gpu, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if isinstance(args[0], OnGpu):
        gpu.wait("item")
    return func(*on_host(args), **kwargs)


def _pin(gpu: Gpu, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return gpu.pin(args[0])


def _is_pinned(gpu: Gpu, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return not isinstance(args[0], OnGpu) and args[0] in gpu.pinned


def _to_copy(gpu: Gpu, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """`to`: a copy that may change device and type."""
    source, blocking = args[0], not kwargs.get("non_blocking")
    target = kwargs.get("device")
    kind = source.device.type if target is None else torch.device(target).type
    more = {k: v for k, v in kwargs.items() if k not in ("device", "non_blocking", "pin_memory")}
    if kind == "meta":
        return func(on_host(source), device=target, **more)
    if kind == "cpu":
        if isinstance(source, OnGpu):
            gpu.wait("copy to the host" if blocking else "copy to pageable memory")
        return func(on_host(source), device="cpu", **more)
    if source.device.type == "meta":
        return OnGpu(fill_with_rubbish(torch.empty(source.shape, dtype=source.dtype)))
    if not isinstance(source, OnGpu):
        if blocking:
            gpu.wait("blocking copy to the device")
        elif source not in gpu.pinned:
            gpu.wait("copy from pageable memory")
        gpu.launch("copy to the device")
        return OnGpu(func(source, **more).clone())
    gpu.launch("_to_copy")
    return OnGpu(func(source.host, **more))


def _copy(gpu: Gpu, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """`copy_`: into a tensor that is there."""
    target, source = args[:2]
    non_blocking = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
    here, there = isinstance(target, OnGpu), isinstance(source, OnGpu)
    if here and there:
        gpu.launch("copy_")
    elif here and not (non_blocking and source in gpu.pinned):
        gpu.wait("copy_ from the host")
    elif there and non_blocking and target in gpu.pinned:
        gpu.underway.start(target, source.host)
        return target
    elif there:
        gpu.wait("copy_ to the host")
    on_host(target).copy_(on_host(source))
    return target


def _attention_choice(gpu: Gpu, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    return EFFICIENT if isinstance(args[0], OnGpu) else func(*args, **kwargs)


COPIES = {
    "_fused_sdp_choice": _attention_choice,
    "_local_scalar_dense": _item,
    "_pin_memory": _pin,
    "pin_memory": _pin,
    "is_pinned": _is_pinned,
    "_to_copy": _to_copy,
    "copy_": _copy,
}

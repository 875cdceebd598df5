"""A tensor that says it lies on cuda:0, while its numbers lie on the host."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tests.pretended_gpu.gpu import Gpu

CUDA = torch.device("cuda", 0)


class OnGpu(Tensor):
    """A tensor of the pretended device; `host` has its numbers, shape and strides.

    What the device does and sees is the business of `gpu`, to which every operation is handed.
    """

    host: Tensor
    gpu: "Gpu"
    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore

    @staticmethod
    def __new__(cls, host: Tensor) -> "OnGpu":
        assert type(host) is Tensor, f"{type(host).__name__} cannot be moved to the device"
        self = Tensor._make_wrapper_subclass(  # pyright: ignore
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=CUDA,
        )
        self.host = host
        cls.gpu.memory.hold(self, host)
        return self

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return cls.gpu.run(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:  # pyright: ignore
        return f"OnGpu({self.host})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        new = self.detach().clone().requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            new._is_param = True
        memo[id(self)] = new
        return new

    @property
    def data(self) -> Tensor:  # pyright: ignore
        return self.detach()

    @data.setter
    def data(self, other: "OnGpu") -> None:
        Tensor.data.__set__(self, other)  # pyright: ignore
        self.host = other.host

    def tolist(self) -> Any:  # pyright: ignore
        self.gpu.wait("tolist")
        return self.host.tolist()

    def pin_memory(self, *_: Any) -> Tensor:  # pyright: ignore
        raise RuntimeError("only dense CPU tensors can be pinned")

    def numpy(self, **_: Any) -> Any:  # pyright: ignore
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy  # pyright: ignore


def on_host(values: Any) -> Any:
    """The same arguments with the tensors of the host in place of the device's."""
    return mapped(lambda value: value.host if isinstance(value, OnGpu) else value, values)


def on_gpu(values: Any) -> Any:
    """The same results as tensors of the device."""
    return mapped(lambda value: OnGpu(value) if type(value) is Tensor else value, values)


def mapped(function: Callable[[Any], Any], values: Any) -> Any:
    """The arguments or results of an operator, each changed by `function`.

    They nest in tuples, lists and dicts alone; `torch.utils._pytree` takes ten times as long.
    """
    kind = type(values)
    if kind is tuple or kind is list:
        return kind([mapped(function, value) for value in values])
    if kind is dict:
        return {key: mapped(function, value) for key, value in values.items()}
    return function(values)


def tensors_in(values: Any) -> list[Tensor]:
    """The tensors among the arguments of an operator."""
    found: list[Tensor] = []
    mapped(lambda value: found.append(value) if isinstance(value, Tensor) else None, values)
    return found

"""Pieces of operators that are closed to torch's compiler, which it compiles by themselves."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor


@cache
def compiled(formula: Callable[..., Any]) -> Callable[..., Any]:
    """A formula of tensors, without a gradient, as the compiler fuses it.

    torch's compiler sees nothing of an operator that is written in Python. So the operator asks
    for what lies between its products, where its caller was compiled. A formula is compiled at its
    first call, and once more when a size has changed: then for all its sizes. Where a process asks
    for more kinds (of dtypes, of threads) than the compiler allows, others stay eager.

    Args:
        formula: may write into its arguments by `copy_`.
    """
    fused = torch.compile(formula)

    def call(*tensors: Tensor) -> Any:
        with torch.no_grad():
            return fused(*(tensor.detach() for tensor in tensors))

    return call

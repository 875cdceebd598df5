"""Triton's compiler accepts the kernels of the experts for GPUs, of which it needs none."""

import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model.test_fused import recorded
from tests.processes import Process

if find_spec("triton") is None:
    pytest.skip("needs triton (pip install 'triton>=3.6')", allow_module_level=True)

SHARED = 99 * 1024  # bytes of shared memory that every GPU from sm_80 on gives to a program
OF_DTYPE = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32"}


KERNELS = {"map_tiles", "gate_up", "scattered", "summed", "hidden_grad", "outer"}
SLOW = [pytest.param(capability, marks=pytest.mark.slow) for capability in (90, 100)]


@pytest.mark.parametrize("capability", [80, *SLOW])
def test_they_compile_without_atomic_additions(capability: int, tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(tmp_path)
    process = Process(_compile_all, (capability,), env)
    output, errors = process.communicate(300)
    assert process.returncode == 0, errors
    assert set(output.split()) == KERNELS


def _compile_all(capability: int) -> None:
    import triton  # pyright: ignore[reportMissingImports]
    from triton.backends.compiler import GPUTarget  # pyright: ignore[reportMissingImports]
    from triton.compiler import ASTSource  # pyright: ignore[reportMissingImports]

    from moebench.model import triton_kernels

    with pytest.MonkeyPatch.context() as patch:
        launches = recorded(patch, torch.bfloat16, "cpu")
    for name, _, warps, arguments, constants in {each[0]: each for each in launches}.values():
        kernel = getattr(triton_kernels, name)
        words = dict(zip(kernel.arg_names, arguments, strict=False)) | constants
        types = {word: _type(value, word in constants) for word, value in words.items()}
        fixed = {word: value for word, value in words.items() if types[word] == "constexpr"}
        source = ASTSource(fn=kernel, signature=types, constexprs=fixed)
        target = GPUTarget("cuda", capability, 32)
        made = triton.compile(source, target=target, options={"num_warps": warps})
        assert made.metadata.shared <= SHARED, name
        assert not re.search(r"\b(atom|red)\.", made.asm["ptx"]), name
        print(name)


def _type(value: Any, constant: bool) -> str:
    if constant:
        return "constexpr"
    return OF_DTYPE.get(value.dtype, "*i64") if isinstance(value, torch.Tensor) else "i32"

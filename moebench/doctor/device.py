"""torch: whether it loads, the device that it finds, and what moebench does with it there.

It may not load, so it is imported only inside the checks.
"""

import os
import shutil
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from moebench.device import capability, suited_precision
from moebench.doctor.finding import GIB, PIP, Finding, brief
from moebench.machine import processor, usable_cores

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CLOSE = {"fp32": 1e-4, "bf16": 2e-2}  # error of the experts, as a share of the largest value
VOCABULARY = 256  # bytes

TORCH_AGAIN = f"install torch again: {PIP} --force-reinstall torch"
WITHOUT_GPU = f"on a GPU, try run.device=cpu; else {TORCH_AGAIN}"
TAKE_FP32 = "add train.precision=fp32"
STAY_FP32 = "leave train.precision=auto, which means fp32 on a CPU"


def import_torch() -> Iterator[Finding]:
    import torch

    yield Finding("import torch", f"{torch.__version__} loads")


def device() -> Iterator[Finding]:
    """The GPU that a run takes, else the CPU, and why there is no GPU although one is there."""
    import torch

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        gpu = torch.cuda.is_available()
    if gpu:
        free, total = torch.cuda.mem_get_info()
        major, minor = torch.cuda.get_device_capability()
        name = f"{torch.cuda.get_device_name()} (1 of {torch.cuda.device_count()})"
        memory = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
        yield Finding("device", f"CUDA: {name}, {memory}, compute capability {major}.{minor}")
        return
    value = f"CPU: {processor()}, {torch.backends.cpu.get_cpu_capability()}"
    get = "install the torch for your driver that pytorch.org/get-started/locally names"
    if shutil.which("nvidia-smi") is None:
        yield Finding("device", value)
    elif torch.version.cuda is None:
        yield Finding(
            "device", f"{value}; torch is built without CUDA", "note", f"for a GPU, {get}"
        )
    elif os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        hidden = "CUDA_VISIBLE_DEVICES hides the GPU"
        yield Finding("device", f"{value}; {hidden}", "note", "for a GPU, unset that variable")
    else:
        why = brief(str(warned[0].message)) if warned else "torch finds no GPU"
        remedy = f"update the driver, or {get}; run.device=cpu does without"
        yield Finding("device", f"{value}; {why}", "problem", remedy)


def threads() -> Iterator[Finding]:
    import torch

    most, alone = usable_cores(), torch.get_num_threads()
    yield Finding("threads", f"a run takes {most}, fewer for small products; torch alone {alone}")


def experts(precision: str) -> Iterator[Finding]:
    """Grouped products and their gradients against those that a plain loop in fp64 gives."""
    import torch

    from moebench.model.grouped import grouped_mm

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    draw = torch.Generator().manual_seed(0)
    rows, matrices, upstream = (
        torch.randn(*shape, generator=draw).to(device, dtype)
        for shape in ((48, 32), (4, 32, 16), (48, 16))
    )
    ends = torch.tensor([16, 16, 40, 48], dtype=torch.int32, device=device)  # one group is empty

    def results(*operands: "Tensor") -> list["Tensor"]:
        *inputs, gradient = operands
        inputs = [tensor.clone().requires_grad_() for tensor in inputs]
        product = grouped_mm(inputs[0], inputs[1], ends)
        return [product, *torch.autograd.grad(product, inputs, gradient)]

    computed = results(rows, matrices, upstream)
    wanted = results(rows.double(), matrices.double(), upstream.double())
    error = _largest_error(computed, wanted)
    name = f"experts in {precision}"
    if error < CLOSE[precision]:
        yield Finding(name, f"right, forward and backward, on {device.type}")
    else:
        value = f"wrong by {error:.1g} of the largest value on {device.type}"
        yield Finding(name, value, "problem", WITHOUT_GPU)


def expert_kernels() -> Iterator[Finding]:
    """What `run.experts=auto` means here, and whether the Triton kernels are right, if they run."""
    import torch

    from moebench.train.expert_kernels import automatic, trouble

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kernels = ", ".join(f"{automatic(precision, device)} in {precision}" for precision in CLOSE)
    name, meaning = "expert kernels", f"run.experts=auto means {kernels}"
    if why := trouble("fp32", device):
        found = Finding(name, meaning)
        if device.type == "cuda":  # where torch has no kernel in fp32
            found = found._replace(state="note", remedy=f"run.experts=triton {why}")
        yield found
        return
    error = _error_of_triton(device)
    if error < CLOSE["fp32"]:
        yield Finding(name, f"{meaning}; those in Triton are right, forward and backward")
    else:
        value = f"{meaning}; those in Triton are wrong by {error:.1g} of the largest value"
        yield Finding(name, value, "problem", "add run.experts=torch")


def _error_of_triton(device: "torch.device") -> float:
    """The error of the Triton kernels in fp32, as a share of the largest value."""
    import torch

    from moebench.model.experts import Experts

    experts = Experts(4, 32, 16).to(device)
    draw = torch.Generator().manual_seed(0)
    x, *weights = (
        torch.randn(*shape, generator=draw) for shape in ((3, 32), (4, 32, 32), (4, 16, 32))
    )
    with torch.no_grad():
        for parameter, weight in zip(experts.parameters(), weights, strict=True):
            parameter.copy_(weight)
    index = torch.tensor([[0, 2], [2, 3], [2, 0]], device=device)  # expert 1 has no tokens
    results = []
    for fused, dtype in ((True, torch.float32), (False, torch.float64)):
        experts.fused = fused
        experts.to(dtype)
        out = experts(x.to(device, dtype), index, torch.full_like(index, 0.5, dtype=dtype))
        results.append([out, *torch.autograd.grad(out.square().sum(), list(experts.parameters()))])
    return _largest_error(*results)


def _largest_error(computed: list["Tensor"], wanted: list["Tensor"]) -> float:
    """The error of each tensor as a share of its largest value; the largest of these."""
    return max(
        float((one.double() - two).abs().max() / two.abs().max())
        for one, two in zip(computed, wanted, strict=True)
    )


def precision() -> Iterator[Finding]:
    """What `train.precision=auto` means here."""
    found = capability("auto")
    where = "no GPU" if found is None else "compute capability {}.{}".format(*found)
    yield Finding("precision", f"train.precision=auto means {suited_precision('auto')} ({where})")


def products() -> Iterator[Finding]:
    """Whether the bits of the default model's products depend on the shape of the product."""
    import torch

    from moebench.config.schema import ExperimentConfig
    from moebench.train.build import blank_model
    from moebench.train.expert_kernels import TRITON, automatic
    from moebench.train.products import KINDS, shape_dependent, shapes_of

    device, config = "cuda" if torch.cuda.is_available() else "cpu", ExperimentConfig()
    config.train.precision = suited_precision(config.run.device)
    with torch.device("meta"):
        model = blank_model(config, VOCABULARY)
    fused = automatic(config.train.precision, torch.device(device)) == TRITON
    shapes = shapes_of(model, config.global_bsz, config.seq_len)
    kinds = shape_dependent(shapes, device, fused=fused)
    equal = "but for rounding" if "stacks" in kinds else "to the bit"
    value = f"the default model in a stack equals the same alone {equal}"
    dependent = ", ".join(f"{kind} ({KINDS[kind]})" for kind in kinds) or "none"
    yield Finding("products", f"{value}; bits depend on shape in: {dependent}")


def bf16_on_cpu() -> Iterator[Finding]:
    """The speed of a training step of the default model, against fp32."""
    from moebench.train.precision_gain import LEAST, bf16_gain

    gain = bf16_gain()
    value = f"{gain:.1f} times the speed of fp32 in a training step"
    if gain >= LEAST:
        yield Finding("bf16 on the CPU", f"{value}: add train.precision=bf16 for speed")
    else:
        yield Finding("bf16 on the CPU", f"no gain: {value}", "note", STAY_FP32)

"""The Triton kernels of the experts on the pretended GPU, in Triton's interpreter."""

import os
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from moebench.model import fused
from moebench.model.experts import Experts
from moebench.train.kernels import Kernels, apply
from tests.pretended_gpu.conftest import MadeRun, step
from tests.pretended_gpu.gpu import Gpu

pytestmark = pytest.mark.gpu
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton") is not None
LAUNCHES = 18  # of a layer, forward and backward


def results(
    experts: Experts, device: str, gpu: Gpu, dtype: torch.dtype = torch.bfloat16
) -> list[Tensor]:
    """The output and all gradients; the GPU forgets what came before."""
    draw = torch.Generator().manual_seed(0)
    x, upstream = (torch.randn(5, 16, generator=draw).to(device, dtype) for _ in range(2))
    weights = torch.rand(5, 2, generator=draw).to(device).requires_grad_()
    index = torch.tensor([[0, 3], [1, 3], [3, 0], [3, 1], [0, 1]])  # expert 2 has no tokens
    index = index.to(device)
    experts = experts.to(device)
    inputs = [x.requires_grad_(), weights, *experts.parameters()]
    gpu.forget()
    out = experts(x, index, weights)
    return [out.detach(), *torch.autograd.grad(out, inputs, upstream)]


@pytest.mark.skipif(not INTERPRETED, reason="needs triton and TRITON_INTERPRET=1")
def test_they_give_the_bits_of_the_cpu_without_a_wait(gpu: Gpu) -> None:
    experts = Experts(4, 16, 8)
    experts.fused = True
    for weight in experts.parameters():
        torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(1))
    on_cpu, on_gpu = (results(experts, device, gpu) for device in ("cpu", "cuda"))
    assert not gpu.waits
    assert not gpu.unordered
    kernels = {name: gpu.launches[name] for name in ("gate_up", "hidden_grad", "outer")}
    assert kernels == {"gate_up": 1, "hidden_grad": 1, "outer": 2}
    # memory that no kernel writes holds rubbish there, so none is read
    assert all(torch.equal(one, other.cpu()) for one, other in zip(on_cpu, on_gpu, strict=True))


@pytest.mark.parametrize(
    ("dtype", "capability"),
    [(torch.float32, (9, 0)), (torch.bfloat16, (8, 0)), (torch.bfloat16, (9, 0))],
)
def test_they_launch_less_than_half_of_what_torch_does(
    dtype: torch.dtype, capability: tuple[int, int], gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "launch", lambda kernel, *_, **__: gpu.launch(kernel))
    gpu.capability, launches = capability, []
    for is_fused in (True, False):
        experts = Experts(16, 16, 96)
        experts.fused = is_fused
        results(experts, "cuda", gpu, dtype)
        launches.append(sum(gpu.launches.values()))
        assert not (is_fused and gpu.waits)
    ours, torchs = launches
    assert ours <= LAUNCHES < torchs / 2


@pytest.mark.skipif(not INTERPRETED, reason="needs triton and TRITON_INTERPRET=1")
def test_a_step_in_fp32_waits_for_nothing(gpu: Gpu, made: MadeRun) -> None:
    weights = []
    for device in ("cpu", "cuda"):
        run = made(device, "train.precision=fp32", "seq_len=8", "model.num_layers=1")
        step(run)  # makes state
        experts = "triton" if device == "cuda" else "grouped_mm"
        apply(Kernels("sdpa", experts, compile=False, peak_flops=1.0), run.state.model)
        gpu.forget()
        step(run)
        assert not gpu.waits
        assert (gpu.launches["gate_up"] > 0) == (device == "cuda")
        weights.append({name: each.cpu() for name, each in run.state.model.state_dict().items()})
    on_cpu, on_gpu = weights
    for name, value in on_cpu.items():
        assert (on_gpu[name] - value).norm() <= 1e-4 * value.norm(), name

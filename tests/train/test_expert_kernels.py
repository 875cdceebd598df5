"""`run.experts`: where the Triton kernels are taken, what stands in their way, what they give."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moebench.config.compose import Composer
from moebench.config.schema import ExperimentConfig
from moebench.errors import ConfigError
from moebench.train import expert_kernels, kernels
from moebench.train.build import make_model
from moebench.train.expert_kernels import automatic, check_experts, trouble

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
Patch = pytest.MonkeyPatch


@pytest.fixture
def gpu(monkeypatch: Patch) -> Patch:
    """A GPU of compute capability 8.0 and Triton 3.9, which works, as far as is asked."""
    set_gpu(monkeypatch, (8, 0))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card")
    monkeypatch.setattr(expert_kernels, "find_spec", lambda name: name)
    monkeypatch.setattr(expert_kernels, "_version", lambda: (3, 9))
    monkeypatch.setattr(expert_kernels, "_fails", lambda device: "")
    return monkeypatch


def set_gpu(patch: Patch, capability: tuple[int, int]) -> None:
    patch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


@pytest.mark.parametrize(
    ("precision", "capability", "kernel"),
    [
        ("fp32", (8, 0), "triton"),
        ("fp32", (9, 0), "triton"),
        ("fp32", (10, 0), "triton"),
        ("fp32", (7, 5), "grouped_mm"),
        ("fp64", (9, 0), "grouped_mm"),
        ("bf16", (8, 0), "triton"),
        ("bf16", (8, 9), "triton"),
        ("bf16", (12, 0), "triton"),
        ("bf16", (9, 0), "grouped_mm"),
        ("bf16", (10, 3), "grouped_mm"),
    ],
)
def test_auto_takes_triton_where_torch_has_no_kernel(
    precision: str, capability: tuple[int, int], kernel: str, gpu: Patch
) -> None:
    set_gpu(gpu, capability)
    assert automatic(precision, CUDA) == kernel
    assert automatic(precision, CPU) == "grouped_mm"
    gpu.setattr(expert_kernels, "find_spec", lambda name: None)
    assert automatic(precision, CUDA) == "grouped_mm"


def test_each_trouble_names_a_remedy(gpu: Patch) -> None:
    assert trouble("fp32", CUDA) == ""
    gpu.setattr(expert_kernels, "_fails", lambda device: "no C compiler")
    words = "triton 3.9 does not work here (no C compiler); use run.experts=torch"
    assert trouble("bf16", CUDA) == words
    set_gpu(gpu, (7, 5))
    words = (
        "needs a GPU of compute capability 8.0 or newer, and Card has 7.5; use run.experts=torch"
    )
    assert trouble("fp32", CUDA) == words
    words = "needs a GPU, and the run is on the CPU; use run.experts=torch"
    assert trouble("fp32", CPU) == words
    gpu.setattr(expert_kernels, "_version", lambda: (3, 5))
    assert trouble("fp32", CUDA).startswith("needs triton 3.6 or newer, and 3.5 is installed; ")
    gpu.setattr(expert_kernels, "find_spec", lambda name: None)
    words = "needs triton, which is not installed; pip install 'triton>=3.6', or use "
    assert trouble("fp32", CUDA) == words + "run.experts=torch"
    words = "has no kernels for train.precision=fp64; use run.experts=torch"
    assert trouble("fp64", CUDA) == words


def composed(*words: str) -> ExperimentConfig:
    return Composer().compose(["model=smoke", "run.threads=1", "run.device=cpu", *words])


def test_a_value_that_cannot_work_is_an_error_before_anything_is_written(gpu: Patch) -> None:
    words = r"^run\.experts=triton: needs a GPU, and the run is on the CPU; use run\.experts=torch$"
    with pytest.raises(ConfigError, match=words):
        check_experts(composed("run.experts=triton"), CPU)
    check_experts(composed("run.experts=triton"), CUDA)
    check_experts(composed(), CPU)
    with pytest.raises(ConfigError, match=r"^run\.experts=auto: needs a GPU"):
        check_experts(composed(), CPU, "triton")  # as the file of a directory of runs says


def test_the_choice_is_recorded_and_what_is_typed_wins(gpu: Patch, tmp_path: Path) -> None:
    chosen = kernels.choose(composed(), 257, tmp_path, CPU)
    assert chosen.experts == "grouped_mm"
    [path] = (tmp_path / ".kernels").glob("*.json")
    assert '"experts": {\n    "fp32": "grouped_mm"\n  }' in path.read_text()
    gpu.setenv("TRITON_INTERPRET", "1")
    typed = composed("run.experts=triton")
    assert kernels.choose(typed, 257, tmp_path, CPU) == replace(chosen, experts="triton")
    assert kernels.choose(composed(), 257, tmp_path, CPU) == chosen
    manifest = {"kernels": vars(chosen)}
    assert kernels.resumed(manifest, composed(), CPU) == chosen
    resumed = kernels.resumed(manifest, typed, CPU)
    assert resumed == replace(chosen, experts="triton")
    gpu.delenv("TRITON_INTERPRET")
    with pytest.raises(ConfigError, match=r"^run\.experts=auto: needs a GPU"):
        kernels.resumed({"kernels": vars(resumed)}, composed(), CPU)


def test_a_model_gives_what_it_gives_with_torchs_product() -> None:
    if reason := trouble("fp32", CPU):
        pytest.skip(reason)
    if expert_kernels._version() == (3, 6):
        pytest.skip("the interpreter of triton 3.6 needs an older NumPy")
    model = make_model(composed("model.num_layers=1", "model.num_shared_experts=1"), 257)
    tokens = torch.randint(0, 257, (2, 6), generator=torch.Generator().manual_seed(0))
    results = []
    for kernel in ("grouped_mm", "triton"):
        kernels.apply(kernels.Kernels("matmul", kernel, False, 1.0), model)
        logits, _ = model(tokens)
        gradients = torch.autograd.grad(logits.square().mean(), list(model.parameters()))
        results.append([logits.detach(), *gradients])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)

"""What moebench chooses and refuses by the GPU that it finds."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from moebench.config.compose import Composer
from moebench.config.treatment import Treatment
from moebench.errors import ConfigError, TrainingError
from moebench.evaluate import open_checkpoint
from moebench.experiment import run_experiment
from moebench.experiment.execution import check_device
from moebench.experiment.provenance import shape_dependent_products
from moebench.model.transformer import causal_attention
from moebench.train import expert_kernels, kernels
from moebench.train.expert_kernels import check_experts
from moebench.train.loop import TrainingRun
from tests.pretended_gpu.conftest import MadeRun
from tests.pretended_gpu.gpu import Gpu

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda", 0)
Patch = pytest.MonkeyPatch


@pytest.fixture
def triton(monkeypatch: Patch) -> Patch:
    """Triton works on the pretended GPU, as far as is asked."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(expert_kernels, "find_spec", lambda name: name)
    monkeypatch.setattr(expert_kernels, "_version", lambda: (3, 9))
    monkeypatch.setattr(expert_kernels, "_fails", lambda device: "")
    return monkeypatch


@pytest.mark.parametrize(
    ("tokens", "capability", "version", "may"),
    [
        (64, (9, 0), "2.13.0+cu130", False),
        (192, (9, 0), "2.11.1", False),
        (128, (9, 0), "2.13.0", True),
        (192, (8, 0), "2.13.0", True),
        (192, (10, 0), "2.13.0", True),
        (192, (9, 0), "2.10.0", True),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_cudnn_computes_no_attention_where_its_gradients_are_nan(
    tokens: int,
    capability: tuple[int, int],
    version: str,
    may: bool,
    masked: bool,
    gpu: Gpu,
    monkeypatch: Patch,
) -> None:
    gpu.capability, seen = capability, []
    attention = F.scaled_dot_product_attention

    def watched(*args: object, **more: object) -> torch.Tensor:
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        return attention(*args, **more)  # pyright: ignore

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    monkeypatch.setattr(torch, "__version__", version)
    q, k, v = torch.randn(3, 1, 2, tokens, 8).cuda().unbind()
    mask = torch.ones(1, tokens, tokens, dtype=torch.bool).tril().cuda() if masked else None
    causal_attention(q, k, v, mask)
    assert seen == [may]
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_a_checkpoint_is_read_with_the_kernels_of_its_run(
    made: MadeRun, gpu: Gpu, triton: Patch, tmp_path: Path
) -> None:
    words = "train.precision=fp32", "train.steps=1", "run.log_every=1"
    trained = made("cpu", *words)
    record = run_experiment(trained.config, trained.corpus, tmp_path)

    def fused() -> set[bool]:
        return {block.experts.fused for block in open_checkpoint(record).model.blocks}  # pyright: ignore

    assert fused() == {True}, "torch has no kernel in fp32, on any GPU"
    manifest = record.manifest()
    manifest |= {"device": "cuda", "kernels": {**manifest["kernels"], "experts": "grouped_mm"}}
    triton.setattr(type(record), "manifest", lambda _: manifest)
    assert fused() == {False}
    manifest["kernels"]["experts"] = "triton"
    assert fused() == {True}
    triton.setattr(expert_kernels, "find_spec", lambda name: None)
    assert fused() == {False}


def test_the_bits_of_a_product_are_asked_of_the_kernels_that_are_chosen(
    made: MadeRun, gpu: Gpu
) -> None:
    run = made("cuda", "train.precision=fp32")
    for fused in (False, True):
        gpu.forget()
        shape_dependent_products(Treatment.of(run.config), run.corpus, CUDA, fused=fused)
        grouped = [place for place in gpu.waits if "grouped kernel" in place]
        assert bool(grouped) != fused


def refused(check: Callable[..., None], *words: str) -> str:
    """The one line by which a config is refused."""
    with pytest.raises(ConfigError) as caught:
        check(Composer().compose(["model=smoke", *words]), CUDA)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_card_that_is_too_old_is_refused(gpu: Gpu, triton: Patch) -> None:
    gpu.capability = (7, 5)
    assert refused(check_device, "train.precision=bf16") == (
        "train.precision=bf16: Pretended GPU has compute capability 7.5, and bf16 takes 8.0; use "
        "train.precision=fp32, or run.device=cpu"
    )
    assert refused(check_experts, "run.experts=triton", "train.precision=fp32") == (
        "run.experts=triton: needs a GPU of compute capability 8.0 or newer, and Pretended GPU has "
        "7.5; use run.experts=torch"
    )
    check_device(Composer().compose(["train.precision=fp32"]), CUDA)
    triton.setattr(expert_kernels, "find_spec", lambda name: None)
    line = refused(check_experts, "run.experts=triton", "train.precision=fp32")
    assert line.startswith("run.experts=triton: needs triton, which is not installed; pip install ")


def test_a_width_that_the_product_does_not_take_is_refused() -> None:
    for precision, width, better in (("bf16", 36, 40), ("fp32", 38, 40)):
        words = f"train.precision={precision}", f"model.expert_dim={width}", "run.device=cuda"
        with pytest.raises(ConfigError) as caught:
            Composer().compose(words)
        line = str(caught.value)
        assert line.startswith(f"model.expert_dim={width}: must be a multiple of ")
        assert f"try model.expert_dim={better}" in line


def test_a_gpu_that_is_taken_or_full_is_one_line(
    made: MadeRun, gpu: Gpu, monkeypatch: Patch, tmp_path: Path
) -> None:
    def busy(*_: object) -> None:
        raise RuntimeError(
            "CUDA error: all CUDA-capable devices are busy\nCUDA kernel errors might"
        )

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has")

    monkeypatch.setitem(kernels.SIDE, "cuda", 64)
    run = made("cuda", "train.precision=fp32")
    config = replace(run.config, run=replace(run.config.run, device="cuda"))
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "mem_get_info", busy)
        line = refused(check_device, "run.device=cuda")
        assert line.startswith("run.device=cuda: the GPU cannot be used (CUDA error: all CUDA-cap")
        with pytest.raises(ConfigError, match=r"add run\.device=cpu"):
            run_experiment(config, run.corpus, tmp_path)
    assert not list(tmp_path.glob("*/config.yaml")), "nothing is written"
    monkeypatch.setattr(TrainingRun, "next_step", full)
    with pytest.raises(TrainingError) as caught:
        run_experiment(config, run.corpus, tmp_path)
    line = str(caught.value)
    assert line.startswith("run.device_bsz=8: out of memory on cuda, ")
    assert line.endswith("take a smaller divisor of global_bsz, or a smaller model")
    assert "\n" not in line

"""A default that suits the device: bf16 and stacks on a GPU, and nothing new on a CPU."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from moebench import device
from moebench.config.compose import Composer, from_dict
from moebench.config.identity import run_name
from moebench.config.schema import ExperimentConfig, RunConfig
from moebench.errors import ConfigError
from moebench.experiment import execution
from moebench.experiment.execution import device_kind, resolved
from moebench.study import make_plan
from moebench.study.stacking import on_gpu, stack_size
from moebench.train.ranks import Ranks

Patch = pytest.MonkeyPatch
Pretend = Callable[..., None]
OLD = "The NVIDIA driver on your system is too old (found version 11040). Please update it."


@pytest.fixture
def pretend(monkeypatch: Patch, tmp_path: Path) -> Pretend:
    """Pretend that torch finds a driver and a GPU, or only a driver that it cannot use."""

    def made(found: tuple[int, int] | Exception | None) -> None:
        def is_available() -> bool:
            if found is None:
                warnings.warn(OLD, stacklevel=1)
            return found is not None

        def get_device_capability() -> tuple[int, int] | None:
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(device, "DRIVERS", (tmp_path,))
        monkeypatch.setattr(torch.cuda, "is_available", is_available)
        monkeypatch.setattr(torch.cuda, "get_device_capability", get_device_capability)

    return made


@pytest.mark.parametrize(
    ("found", "precision"),
    [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16"), ((12, 0), "bf16"), (None, "fp32")],
)
def test_the_card_decides(pretend: Pretend, found: tuple[int, int] | None, precision: str) -> None:
    pretend(found)
    assert device.suited_precision("auto") == device.suited_precision("cuda") == precision
    assert device.suited_precision("cpu") == "fp32"
    config = Composer().compose(["run.stack=3"])
    assert (on_gpu("auto"), stack_size(config)) == (found is not None, 3)
    assert not on_gpu("cpu")


@pytest.mark.parametrize(
    ("found", "words", "runs"),
    [
        ((9, 0), "train.precision=bf16", 63),
        ((9, 0), "train.precision=bf16 run.experts=triton", 200),
        ((9, 0), "train.precision=fp32", 200),
        ((8, 0), "train.precision=bf16", 200),
    ],
)
def test_only_torchs_grouped_kernel_limits_a_stack(
    pretend: Pretend, found: tuple[int, int], words: str, runs: int
) -> None:
    pretend(found)
    assert stack_size(Composer().compose(["run.stack=200", *words.split()])) == runs


def test_a_gpu_that_is_taken_is_an_error_of_one_line(pretend: Pretend, monkeypatch: Patch) -> None:
    def taken() -> None:
        raise busy

    busy = RuntimeError("CUDA-capable device(s) is/are busy\nCompile with TORCH_USE_CUDA_DSA")
    config = Composer().compose()
    pretend((9, 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", taken)
    with pytest.raises(ConfigError, match=r"^run.device=auto: the GPU cannot be used \(.*busy\); "):
        stack_size(config)
    pretend(busy)
    with pytest.raises(ConfigError, match=r"^run.device=cuda: the GPU .* add run.device=cpu$"):
        device.suited_precision("cuda")


def test_an_old_driver_is_named(pretend: Pretend) -> None:
    pretend(None)
    run = Composer().compose(["run.device=cuda"]).run
    with pytest.raises(ConfigError, match=r"no CUDA device \(The NVIDIA driver .*11040\)\); moe"):
        device_kind(run)


def test_torch_is_not_imported_without_a_driver() -> None:
    code = (
        "import sys; from moebench import device; device.DRIVERS = ()\n"
        "print(device.suited_precision('auto'), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("fp32 False\n", "")


def on_cuda(device: str) -> str:
    """Workers with a GPU, which this machine has not."""
    return "fp32" if device == "cpu" else "bf16"


def test_auto_is_the_precision_that_is_meant() -> None:
    far = Composer(suited=on_cuda)

    def name(composer: Composer, *words: str) -> str:
        return run_name(composer.compose(words), "c0ffee0000")

    assert name(Composer()) == name(Composer(), "train.precision=fp32")
    assert name(far) == name(Composer(), "train.precision=bf16") != name(Composer())
    assert name(far, "run.device=cpu") == name(far, "train.precision=fp32") == name(Composer())
    assert name(far, "train.precision=auto", "run.device=cuda") == name(far)
    with pytest.raises(ConfigError, match=r"model.expert_dim=12: .* in bf16; .*precision=fp32$"):
        far.compose(["model.expert_dim=12"])


def test_a_plan_asks_the_workers_once_and_keeps_the_answer(
    text_folder: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(device, "suited_precision", None)  # the machine that submits is not asked
    words = ["scope=micro,global", "model=smoke", "global_bsz=8", "seq_len=32", "train.steps=6"]
    words += ["data=folder", f"data.path={text_folder}"]
    asked: list[str] = []
    far = Composer(suited=lambda device: (asked.append(device), on_cuda(device))[1])
    plan = make_plan(far, words)
    assert asked == ["auto"]
    assert [job.config["train"]["precision"] for job in plan.jobs] == ["bf16", "bf16"]
    assert from_dict(plan.jobs[0].config).train.precision == "bf16"  # as a worker reads it
    typed = make_plan(Composer(), [*words, "train.precision=bf16"])
    assert typed.slug == plan.slug


def test_many_more_threads_than_cores_are_refused(monkeypatch: Patch) -> None:
    wanted = ExperimentConfig(run=RunConfig(device="cpu", threads=65))
    monkeypatch.setattr(execution, "usable_cores", lambda: 17)
    assert resolved(wanted, None, Ranks()).threads == 65
    monkeypatch.setattr(execution, "usable_cores", lambda: 2)
    with pytest.raises(ConfigError, match=r"^run.threads=65: .* 2 cores for at most 64 threads; u"):
        resolved(wanted, None, Ranks())


@pytest.mark.parametrize(
    ("cores", "words", "threads"),
    [
        (2, "model=tiny global_bsz=32", 1),
        (2, "model=tiny global_bsz=32 model.d_model=256", 2),
        (2, "model=smoke global_bsz=32", 1),
        (2, "model=smoke global_bsz=32 run.threads=2", 2),
        (2, "model=smoke global_bsz=64", 1),
        (2, "model=smoke global_bsz=64 router=relu method=remoe", 2),  # computes every expert
        (2, "model=smoke global_bsz=32 model.moe=false scope=none", 2),
        (2, "model=small", 2),
        (2, "model=small run.device_bsz=1", 1),
        (64, "model=tiny", 6),
        (2000, "model=small global_bsz=4096", 1024),  # as many as its record may say
    ],
)
def test_each_thread_gets_a_part_of_a_product_that_is_worth_waking_it(
    cores: int, words: str, threads: int, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(execution, "usable_cores", lambda: cores)
    config = Composer().compose(["run.device=cpu", *words.split()])
    assert resolved(config, None, Ranks()).threads == threads


def test_ranks_share_the_cores_and_a_gpu_asks_for_no_product(
    pretend: Pretend, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(execution, "usable_cores", lambda: 64)
    config = Composer().compose(["run.device=cpu", "model=small", "global_bsz=256"])
    threads = [resolved(config, None, Ranks(size=size)).threads for size in (1, 4, 64)]
    assert threads == [64, 16, 1]
    small = Composer().compose(["model=smoke", "global_bsz=32"])
    assert resolved(small, None, Ranks()).threads == 1
    pretend((9, 0))
    assert resolved(small, None, Ranks()).threads == 64

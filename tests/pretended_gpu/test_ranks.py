"""Ranks on pretended GPUs train the run of one process on a CPU."""

import subprocess
import sys
from pathlib import Path

import pytest

from moebench.records import Record
from tests.pretended_gpu.gpu import Gpu
from tests.processes import environments

pytestmark = pytest.mark.gpu
WORDS = [
    *("model=smoke", "train.steps=2", "global_bsz=8", "seq_len=32", "data.valid_sequences=4"),
    *("train.eval_every=0", "run.threads=1", "run.log_every=1", "train.precision=fp32"),
    *("scope=global", "run.device_bsz=2", "data=folder"),
]
# the device must be there before torch, so a rank is a process that begins with it
BEGIN = """
from tests.pretended_gpu import plugin
import runpy
from tests.pretended_gpu.pretend import pretended
from moebench.train import kernels
kernels.SIDE["cuda"] = 64
with pretended(ties=False):
    runpy.run_module("moebench.cli", run_name="__main__")
"""


def test_two_ranks_train_the_run_of_one(gpu: Gpu, text_folder: Path, tmp_path: Path) -> None:
    words = ["train", *WORDS, f"data.path={text_folder}"]
    command = [sys.executable, "-c", BEGIN, *words]
    cpu, cuda = (
        ["--runs-dir", str(tmp_path / device), f"run.device={device}"] for device in ("cpu", "cuda")
    )
    both = [subprocess.Popen([*command, *cuda], env=env) for env in environments(2)]
    assert [rank.wait(240) for rank in both] == [0, 0]
    subprocess.run([sys.executable, "-m", "moebench.cli", *words, *cpu], check=True, timeout=240)
    one, two = (Record(next((tmp_path / device).glob("*-s0-*"))) for device in ("cpu", "cuda"))
    assert one.name == two.name
    assert two.damage() == []
    assert (two.manifest()["device"], two.manifest()["ranks"]) == ("cuda", 2)
    for name in ("valid/nats", "train/loss", "train/balance_loss", "train/grad_norm"):
        assert two.summary()[name] == pytest.approx(one.summary()[name], rel=1e-4), name

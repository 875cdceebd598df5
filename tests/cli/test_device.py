"""What a newcomer with a GPU sees: bf16 and stacks, said on the first line of each command."""

import re
from pathlib import Path

import pytest

from moebench import device
from moebench.experiment import execution
from moebench.records import Record
from tests.calls import Call


@pytest.fixture
def newcomer(text_folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Settings that say nothing of the device, where an H100 and two cores are pretended."""
    monkeypatch.setattr(execution, "usable_cores", lambda: 2)
    monkeypatch.setattr(device, "capability", lambda wanted: None if wanted == "cpu" else (9, 0))
    return [
        *("model=smoke", "train.steps=1", "global_bsz=8", "seq_len=32", "data.valid_sequences=4"),
        *("data=folder", f"data.path={text_folder}", "train.eval_every=0"),
    ]


def test_a_run_takes_bf16_and_says_so(call: Call, newcomer: list[str]) -> None:
    planned = call("train", "--dry-run", *newcomer).out
    assert re.fullmatch(r"runs/\S+: 1 steps of 8 sequences in bf16\n", planned)
    typed = call("train", "--dry-run", *newcomer, "train.precision=bf16").out
    assert planned == typed != call("train", "--dry-run", *newcomer, "run.device=cpu").out
    assert "precision: bf16\n" in call("train", "--print-config", *newcomer).out
    trained = call("train", *newcomer)  # on the CPU that there is
    assert trained.code == 0, trained.err
    path = planned.split(":")[0]
    threads = "1 thread of 2, as its products are small"
    assert f"{path}  cpu, bf16, {threads}; balance loss per router: global: " in trained.err
    record = Record(Path(path))
    assert record.config()["train.precision"] == record.manifest()["precision"] == "bf16"


def test_a_sweep_plans_bf16_and_stacks_and_says_so(call: Call, newcomer: list[str]) -> None:
    words = ["sweep", "--dry-run", *newcomer, "scope=micro,global"]
    first = call(*words, "run.stack=4").out.splitlines()[0]
    told = r"sweep-\w+: 2 runs in bf16, up to 2 of them stacked in one process\."
    assert re.fullmatch(told, first)
    first = call(*words, "run.stack=4", "train.precision=fp32").out.splitlines()[0]
    assert re.fullmatch(r"sweep-\w+: 2 runs, up to 2 of them stacked in one process\.", first)
    first = call(*words, "run.device=cpu").out.splitlines()[0]
    assert re.fullmatch(r"sweep-\w+: 2 runs\.", first)

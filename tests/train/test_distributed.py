"""Several ranks train the same run as one process, up to rounding."""

import json
from pathlib import Path

import numpy as np
import pytest

from moebench.errors import ConfigError
from moebench.records import Record
from moebench.train.ranks import world_size
from tests.calls import Result
from tests.processes import moebench, moebench_on_ranks

SMALL = [
    *("model=smoke", "train.steps=6", "seq_len=32", "data.valid_sequences=4", "data=folder"),
    *("run.device=cpu", "run.threads=1", "run.log_every=1"),
]


VARIES = {"time", "speed/tokens_per_second", "speed/step_seconds", "speed/mfu", "memory/peak_bytes"}


def train(place: Path, ranks: int, *words: str) -> Result:
    """Run `moebench train` on some ranks, in a folder; the outputs of all, one after another."""
    if not any(word.startswith("global_bsz=") for word in words):
        words = ("global_bsz=8", *words)
    place.mkdir(exist_ok=True)
    words = "train", *SMALL, *words
    if ranks == 1:
        started = [moebench(*words, cwd=place)]
    else:
        started = moebench_on_ranks(ranks, *words, cwd=place)
    outputs = [each.communicate(240) for each in started]
    code = max(each.wait() for each in started)
    return Result(code, "".join(out for out, _ in outputs), "".join(err for _, err in outputs))


def the_run(place: Path) -> Record:
    [path] = (place / "runs").glob("*-s0-*")
    return Record(path)


def test_two_ranks_train_the_run_of_one(tmp_path: Path, text_folder: Path) -> None:
    words = [f"data.path={text_folder}", "scope=global", "loss.balance=1", "run.device_bsz=2"]
    words += ["loss.z=0.01", "balance.estimator_error=true", "run.record_selections=true"]
    alone = train(tmp_path / "one", 1, *words)
    assert alone.code == 0, alone.err
    both = train(tmp_path / "two", 2, "--json", *words)
    assert both.code == 0, both.err
    printed = json.loads(both.out)
    assert printed["summary"]["status"] == "done", "one rank prints, and once"
    one, two = the_run(tmp_path / "one"), the_run(tmp_path / "two")
    assert one.name == two.name
    assert two.damage() == []
    assert (one.manifest()["ranks"], two.manifest()["ranks"]) == (1, 2)
    for before, row in zip(one.rows(), two.rows(), strict=True):
        for key in before.keys() - VARIES:
            assert row[key] == pytest.approx(before[key], rel=1e-4, abs=1e-6), key
    for part in ("train", "valid", "tune"):
        index = [np.load(run.path / "selections" / f"{part}.npy") for run in (one, two)]
        assert (index[0] == index[1]).mean() > 0.999, "rounding may turn a tie"
    layers, experts, integer = 2, 8, 8
    assert two.summary()["balance/allreduce_bytes"] == layers * experts * integer
    assert two.summary()["balance/allreduce_seconds"] > 0
    assert "balance/allreduce_bytes" not in one.summary()


@pytest.mark.slow
def test_all_ranks_end_if_the_first_refuses_to_start(tmp_path: Path, text_folder: Path) -> None:
    words = [f"data.path={text_folder}"]
    assert train(tmp_path, 1, *words).code == 0
    record = the_run(tmp_path)
    (record.path / "summary.json").unlink()
    result = train(tmp_path, 2, *words)
    assert result.code != 0
    assert "is an unfinished run; --resume continues it" in result.err
    assert "rank 1: the first rank did not begin" in result.err
    assert train(tmp_path, 2, "--resume", *words).code == 0
    assert record.is_done()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "WORLD_SIZE=3: must divide global_bsz=8; start fewer ranks"),
        (
            ["global_bsz=24", "run.device_bsz=6"],
            "run.device_bsz=6: must divide the 8 sequences that each of 3 ranks",
        ),
    ],
)
def test_ranks_that_cannot_share_a_step_are_refused(
    tmp_path: Path,
    text_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    error: str,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    result = train(tmp_path, 1, f"data.path={text_folder}", *words)
    assert result.code == 2
    assert f"error: {error}" in result.err


@pytest.mark.parametrize("size", ["0", "-2", "two", "1.5", ""])
def test_a_world_size_that_is_no_number_of_ranks_is_refused(
    monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(ConfigError, match=f"^WORLD_SIZE={size}: must be a whole number of ranks"):
        world_size()


def test_a_sweep_refuses_to_run_under_torchrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    process = moebench("sweep", cwd=tmp_path)
    _, errors = process.communicate(60)
    assert process.returncode == 2
    assert errors.startswith("error: WORLD_SIZE: a sweep starts its own processes")

"""`moebench inspect --counts`: counts of any trainer, by hand, and files that cannot be used."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.calls import Call
from tests.doc_pages import ROOT, blocks

# two steps of two micro-batches, one layer, four experts, a token of each domain a micro-batch
COUNTS = np.array([[[4, 2, 2, 0]], [[0, 2, 2, 4]], [[3, 2, 2, 1]], [[1, 2, 2, 3]]])
STEP, DOMAIN = np.array([0, 0, 1, 1]), np.array(["a", "b", "a", "b"])


def as_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **{"counts": COUNTS, "step": STEP, "domain": DOMAIN, **arrays})
    return path


def as_table(**columns: Any) -> pd.DataFrame:
    row, layer, expert = np.indices(COUNTS.shape).reshape(3, -1)
    made = {"micro_batch": row % 2, "layer": layer, "expert": expert, "count": COUNTS.ravel()}
    return pd.DataFrame({"step": STEP[row], **made, "domain": DOMAIN[row], **columns})


def test_counts_are_measured_as_by_hand(call: Call, tmp_path: Path) -> None:
    (tmp_path / "times.csv").write_text("tokens,ms\n0,1\n16,9\n")
    words = ["--top-k", "1", "--cost", tmp_path / "times.csv"]
    result = call("inspect", "--counts", as_npz(tmp_path / "c.npz"), *words, "--json")
    made = json.loads(result.out)
    assert result.code == 0
    # deviations of 2 and 1 from p = 1/4, in two experts of two micro-batches of 8 tokens each
    observed = (2 * 2 * 2**2 + 2 * 2 * 1**2) / 8
    assert made["dispersion"]["ratio"] == pytest.approx(observed / (2 * (16 / 15) * 4 * 3 / 16))
    assert made["dispersion_within_domains"] is None
    assert made["metrics"]["load/max_vio_micro"] == pytest.approx((1 + 0.5) / 2)
    assert made["metrics"]["load/max_vio_batch"] == made["metrics"]["load/max_vio_global"] == 0
    assert 0 < made["random"]["load/max_vio_global"] < made["random"]["load/max_vio_micro"]
    # ranks 0 and 1 hold experts 0, 2 and 1, 3: all have 8 of 16
    assert (made["ranks"], made["metrics"]["ep/slowdown"]) == (2, 1)
    assert made["cost"] == {"ranks": 2, "ms": 5, "even_ms": 5}
    table = tmp_path / "c.parquet"
    as_table().sample(frac=1, random_state=0).to_parquet(table)
    again = json.loads(call("inspect", "--counts", table, *words, "--json").out)
    assert {**again, "name": ""} == {**made, "name": ""}


def test_parts_of_a_micro_batch_are_added_up(call: Call, tmp_path: Path) -> None:
    parts = as_npz(tmp_path / "c.npz", step=STEP * 0, micro_batch=STEP)
    made = json.loads(call("inspect", "--counts", parts, "--top-k", "1", "--json").out)
    assert made["dispersion"]["micro_batches"] == 2
    assert made["dispersion"]["ratio"] == 0
    assert made["counts"] == [[[7, 4, 4, 1], [1, 4, 4, 7]]]


def test_the_snippet_of_the_docs_writes_such_a_file(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    [code] = [
        block
        for block in blocks((ROOT / "docs" / "inspecting.md").read_text(), "python")
        if "counts.npz" in block
    ]
    exec(compile(code, "docs", "exec"), {})
    result = call("inspect", "--counts", "counts.npz", "--top-k", "1")
    assert result.code == 0
    assert "4 steps, 32 micro-batches of about 100 tokens, 2 layers, 8 experts" in result.out
    assert re.search(r"(0\.\d\d|1\.\d\d) \(.* 95 %\) times as much as by chance", result.out)
    assert "between those of one domain: " in result.out


def test_what_is_wrong_is_one_line(call: Call, tmp_path: Path) -> None:
    good, table = as_npz(tmp_path / "good.npz"), tmp_path / "c.parquet"
    (tmp_path / "text.npz").write_text("text")
    (tmp_path / "text.parquet").write_text("text")
    times = {"": "must begin", "tokens,ms\n1,2": "at least two", "tokens,ms\n0,1\n0,2": "no more"}
    times |= {"tokens,ms\n0,x\n1,2": "line 2 is not", "tokens,ms\n0,1\n4,2": "up to 8; measure"}
    cases: list[tuple[tuple[Any, ...], str]] = [
        ((good,), "needs --top-k"),
        ((good, "--top-k", "2", "--text", "a"), "does not go with --text"),
        ((good, "--top-k", "9"), "--top-k=9: must be at most the 4 experts"),
        ((good, "--top-k", "4"), "an expert with more counts than tokens; is --top-k=4 right?"),
        ((good, "--top-k", "1", "--layer", "1"), "--layer=1: must be between 0 and 0"),
        ((tmp_path / "none.npz", "--top-k", "1"), "No such file"),
        ((tmp_path, "--top-k", "1"), "Is a directory"),
        ((tmp_path / "text.npz", "--top-k", "1"), "is not an .npz file"),
        ((tmp_path / "text.parquet", "--top-k", "1"), "is no sound Parquet"),
    ]
    for number, (content, wanted) in enumerate(times.items()):
        path = tmp_path / f"{number}.csv"
        path.write_text(content)
        cases.append(((good, "--top-k", "1", "--cost", path), wanted))
    for number, (arrays, wanted) in enumerate(
        (
            ({"counts": COUNTS / 2}, "counts that is not int rows layers experts"),
            ({"counts": COUNTS[0]}, "counts that is not int rows layers experts"),
            ({"counts": COUNTS - 1}, "a number in counts that is not from 0"),
            ({"counts": COUNTS * 0}, "step 0, micro-batch 0 has in layer 0 less than a token"),
            ({"counts": COUNTS[:, :, :1]}, "has 1 experts, which must be from 2"),
            ({"step": STEP[:3]}, "has 4 rows, and 3 in step"),
            ({"step": np.arange(4)}, "no step has two micro-batches that can differ"),
            ({"step": STEP * 0, "micro_batch": STEP, "domain": STEP.astype("U")}, "has two rows"),
            ({"domain": STEP}, "domain that is not text rows"),
            ({"microbatch": STEP}, "has microbatch, which is not read; call it micro_batch"),
        )
    ):
        cases.append(((as_npz(tmp_path / f"{number}.npz", **arrays), "--top-k", "1"), wanted))
    for words, wanted in cases:
        result = call("inspect", "--counts", *words)
        assert (result.code, result.out) == (2, ""), words
        assert wanted in result.err
        assert result.err.count("\n") == 1
    for made, wanted in (
        (as_table().drop(columns="count"), "lacks the column count"),
        (as_table(count=0.5), "has a column count of double, not of whole numbers"),
        (as_table(layer=-1), "a number in layer that is not from 0"),
        (as_table(expert=1), "has two rows of one step, micro_batch, domain, layer and expert"),
        (as_table(domain=None), "has a column domain of null, not of text"),
        (as_table().iloc[:0], "has no rows"),
        (
            as_table().rename(columns={"step": "steps"}),
            "has steps, which is not read; call it step",
        ),
        (as_table(expert=2**30), "experts, which must be from 2 to 4096"),
    ):
        made.to_parquet(table)
        result = call("inspect", "--counts", table, "--top-k", "1")
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
        assert wanted in result.err
    assert "add --counts" in call("inspect", "runs", "--top-k", "1").err

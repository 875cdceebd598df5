"""`moebench export` and `moebench sample` as they are typed."""

import json
from pathlib import Path

import pytest

from moebench.evaluate import Checkpoint
from tests.calls import Call


def test_export_and_sample(call: Call, small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run = json.loads(call("train", *small, "--json").out)["run"]
    code, out, err = call("export", run, "--to", "model")
    assert (code, out) == (0, "")
    assert "model: step 6 of global-s0-" in err
    assert {path.name for path in Path("model").iterdir()} == {
        *("model.safetensors", "config.json", "generation_config.json", "README.md"),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    code, out, err = call("export", run, "--to", "model")
    assert (code, out) == (2, "")
    assert err == "error: --to=model: is in use; name a new folder\n"
    told = json.loads(call("sample", run, "--prompt", "So ", "--tokens", 5, "--json").out)
    assert told["text"].startswith("So ")
    assert told["tokens"] <= 5
    plain = call("sample", run, "--prompt", "So ", "--tokens", 5)
    assert (plain.code, plain.err) == (0, "")
    assert plain.out.startswith("So ")
    with monkeypatch.context() as patch:
        patch.setattr("moebench.sample.continued", lambda *_, **__: iter([0xFE, *b"ab"]))
        told = call("sample", run, "--prompt", "So ", "--experts").out
    text, title, _, *rows = told.splitlines()
    assert (text, title) == (
        "So \N{REPLACEMENT CHARACTER}ab",
        "the experts of each token, the likeliest first",
    )
    assert " ".join(row.split()[0] for row in rows) == "S o ␣ \N{REPLACEMENT CHARACTER} a b"
    monkeypatch.setattr(Checkpoint, "note", "its own router selects")
    assert call("sample", run, "--prompt", "So ", "--tokens", 1).err == "its own router selects\n"

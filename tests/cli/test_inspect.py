"""`moebench inspect`: routers of runs, on texts, and of Hugging Face checkpoints."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from moebench.config.compose import Composer
from moebench.data.corpus import prepare
from moebench.evaluate import open_checkpoint
from moebench.experiment import run_experiment
from moebench.records import Record
from tests.calls import Call
from tests.hooks.families import save


def make_run(folder: Path, text_folder: Path, *more: str) -> Record:
    words = [
        *("model=smoke", "train.steps=4", "global_bsz=8", "seq_len=32", "data.valid_sequences=4"),
        *("data=folder", f"data.path={text_folder}", "run.device=cpu", "run.threads=1"),
    ]
    config = Composer().compose([*words, *more])
    return run_experiment(config, prepare(config.data), folder)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory, text_folder: Path) -> Record:
    return make_run(tmp_path_factory.mktemp("runs"), text_folder, "train.eval_every=2")


def test_a_dense_run_is_refused(text_folder: Path, tmp_path: Path, call: Call) -> None:
    dense = make_run(tmp_path, text_folder, "model.moe=false")
    for words in ((), ("--text", "a")):
        result = call("inspect", dense.path, *words)
        assert (result.code, result.out) == (2, "")
        assert result.err.endswith("is of a dense model, which has no routers to inspect\n")


def test_a_run_is_shown_from_its_record(record: Record, call: Call) -> None:
    result = call("inspect", record.path, "--json")
    printed = json.loads(result.out)
    assert result.code == 0
    assert np.array_equal(printed["counts"], record.routing(4)["counts"])
    assert printed["metrics"]["valid/nats"] == record.summary()["valid/nats"]
    assert list(printed["settled"]) == ["0", "2", "4"]
    assert printed["settled"]["4"] == 1
    early = json.loads(call("inspect", record.path, "--step", "2", "--json").out)
    assert early["metrics"]["valid/nats"] == record.rows()[1]["valid/nats"]
    shown = call("inspect", record.path, "--layer", "0").out
    assert "layer 0: experts" in shown
    assert "digits" in shown
    assert "ep/\n  slowdown " in re.sub(" +\n", "\n", shown)


def test_an_older_record_is_read(record: Record, tmp_path: Path, call: Call) -> None:
    """A record without the arrays that newer evaluations store."""
    old = Record(tmp_path / "old")
    manifest = {key: each for key, each in record.manifest().items() if "random" not in key}
    old.begin((record.path / "config.yaml").read_text(), manifest)
    old.append({"step": 4, "valid/nats": 2.0, "valid/ppl": 7.4})
    arrays = record.routing(4)
    old.save_routing(4, {key: arrays[key] for key in ("counts", "coactivation", "probe_index")})
    assert call("inspect", old.path).code == 0


def test_a_text_is_shown_with_the_experts_of_the_model(record: Record, call: Call) -> None:
    printed = json.loads(call("inspect", record.path, "--text", "0é1", "--json").out)
    assert printed["tokens"] == ["0", "<c3>", "é", "1"]
    given = torch.tensor([list("0é1".encode())])
    _, routing = open_checkpoint(record).model(given)
    assert printed["experts"] == routing.expert_index[:, 0].tolist()
    shown = call("inspect", record.path, "--text", "0é1").out
    rows = [line.split() for line in shown.splitlines()[2:]]
    first, second = printed["experts"]
    wanted = [[str(each) for each in (*a, *b)] for a, b in zip(first, second, strict=True)]
    assert [row[0] for row in rows] == ["0", "<c3>", "é", "1"]
    assert [row[1:] for row in rows] == wanted
    alone = call("inspect", record.path, "--text", "0é1", "--layer", "1").out
    assert [line.split()[1:] for line in alone.splitlines()[2:]] == [row[2:] for row in wanted]


def test_what_is_wrong_is_one_line(
    call: Call, record: Record, checkpoint: Path, tmp_path: Path, text_folder: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mixtral"}')
    for words, wanted in {
        (): "name either a run, or a checkpoint",
        (record.path, "--hf", tmp_path): "name either a run, or a checkpoint",
        ("nowhere",): "is not a run",
        (record.path, "--step", "3"): "it has 0, 2, 4",
        (record.path, "--layer", "9"): "--layer=9: must be between 0 and",
        (record.path, "--text", ""): "--text: is empty",
        (record.path, "--data", tmp_path): "is text for a checkpoint; add --hf",
        (record.path, "--text", "\udcff"): "--text: is not valid UTF-8",
        (record.path, "--text", "a", "--layer", "9"): "--layer=9: must be between 0 and",
        ("--hf", "nowhere", "--data", tmp_path): "has no config.json",
        ("--hf", tmp_path): "needs --data",
        ("--hf", checkpoint, "--data", tmp_path): f"{tmp_path}/place: holds no text",
        ("--hf", tmp_path, "--data", text_folder): "cannot be loaded",
        ("--hf", tmp_path, "--data", tmp_path, "--micro-bsz", "5"): "must divide --sequences=32",
    }.items():
        result = call("inspect", *words)
        assert (result.code, result.out) == (2, ""), words
        assert wanted in result.err
        assert result.err.count("\n") == 1


def test_without_transformers_the_error_names_the_remedy(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    (tmp_path / "config.json").write_text("{}")
    result = call("inspect", "--hf", tmp_path, "--data", tmp_path)
    assert result.code == 2
    assert "pip install 'moebench[huggingface]'" in result.err


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Qwen3-MoE checkpoint with a byte tokenizer."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(
        vocab_size=256,
        hidden_size=32,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,  # pyright: ignore
        num_experts=8,
        num_experts_per_tok=2,
    )
    folder = tmp_path_factory.mktemp("checkpoint")
    return save(transformers.Qwen3MoeForCausalLM(config), folder)


def test_a_hugging_face_checkpoint(checkpoint: Path, text_folder: Path, call: Call) -> None:
    transformers = pytest.importorskip("transformers")

    size = ("--sequences", 8, "--seq-len", 32, "--micro-bsz", 4)
    result = call("inspect", "--hf", checkpoint, "--data", text_folder, *size, "--json")
    printed = json.loads(result.out)
    assert result.code == 0
    assert printed["domains"] == ["digits", "letters", "shapes"]

    # Compute the same with transformers and loops over tokens.
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    corpus = prepare(Composer().compose(["data=folder", f"data.path={text_folder}"]).data)
    nats = []
    counts = torch.zeros(2, 3, 8)
    lbl = {"micro": [], "global": []}
    probs = []
    for number, domain in enumerate(corpus.domains):
        text = corpus.tokenizer.decode(corpus.valid(domain, "test"))
        tokens = torch.tensor(tokenizer(text)["input_ids"][: 8 * 33]).view(8, 33)
        with torch.no_grad():
            out = model(tokens[:, :-1], labels=None, output_router_logits=True)
        targets = out.logits.double().log_softmax(-1).gather(-1, tokens[:, 1:, None])
        nats.append(-targets.mean().item())
        p = torch.stack(out.router_logits).double().softmax(-1).view(2, 8, 32, 8)
        probs.append(p)
        for layer in range(2):
            for chosen in p[layer].topk(2).indices.reshape(-1, 2).tolist():
                for expert in chosen:
                    counts[layer, number, expert] += 1
    everything = torch.cat(probs, 1)
    for name, bsz in (("micro", 4), ("global", 24)):
        for layer in range(2):
            for first in range(0, 24, bsz):
                p = everything[layer, first : first + bsz].reshape(-1, 8)
                f = torch.nn.functional.one_hot(p.topk(2).indices, 8).sum((0, 1)) / (2 * len(p))
                lbl[name].append(float(8 * (f * p.mean(0)).sum()))
    metrics = printed["metrics"]
    assert metrics["valid/nats"] == pytest.approx(np.mean(nats), rel=1e-5)
    assert metrics["valid/bits_per_byte"] == pytest.approx(np.mean(nats) / np.log(2), rel=1e-5)
    assert printed["counts"] == counts.tolist()
    for name, each in lbl.items():
        assert metrics[f"train/balance_loss_{name}"] == pytest.approx(np.mean(each), rel=1e-5)
    shown = call("inspect", "--hf", checkpoint, "--data", text_folder, *size).out
    assert "qwen3_moe: 2 MoE layers, 8 experts, top-2" in shown


def test_a_dense_checkpoint_is_refused(
    checkpoint: Path, text_folder: Path, call: Call, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")

    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(checkpoint).save_pretrained(tmp_path)
    size = ("--sequences", 4, "--seq-len", 32)
    result = call("inspect", "--hf", tmp_path, "--data", text_folder, *size)
    assert result.code == 2
    assert "llama: is a dense model, without routers" in result.err
    more = call("inspect", "--hf", checkpoint, "--data", text_folder, "--seq-len", 10**6)
    assert "has text for 0 sequences" in more.err

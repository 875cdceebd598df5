"""Runs that start from a Hugging Face checkpoint: equal logits, upcycling, and what is refused."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from moebench.config.compose import Composer
from moebench.config.identity import arm_hash, run_name
from moebench.config.schema import ExperimentConfig
from moebench.config.stackable import stack_key
from moebench.data.corpus import prepare
from moebench.errors import ConfigError
from moebench.evaluate import open_checkpoint
from moebench.experiment import run_experiment
from moebench.export import export
from moebench.records import Record
from moebench.train.build import make_model
from moebench.train.starting import check_start

LITTLE = [
    *("model=smoke", "train.steps=1", "global_bsz=8", "seq_len=32", "data.valid_sequences=4"),
    *("data=folder", "run.device=cpu", "run.threads=1"),
]
PADDING = {
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "a",
}
TRUNCATION = {"direction": "Right", "strategy": "LongestFirst"}
TOKENS = torch.tensor([[255, *b"some text, long enough"]])


@pytest.fixture(scope="module")
def words(text_folder: Path) -> list[str]:
    return [*LITTLE, f"data.path={text_folder}"]


@pytest.fixture(scope="module")
def trained(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, Path]:
    """A run, and its model as a Hugging Face checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    config = Composer().compose(words)
    record = run_experiment(config, prepare(config.data), folder / "runs")
    export(open_checkpoint(record), folder / "model")
    return record, folder / "model"


def started(words: list[str], folder: Path, *more: str) -> ExperimentConfig:
    return Composer().compose([*words, f"model.init={folder}", *more])


def check(words: list[str], folder: Path, *more: str) -> None:
    config = started(words, folder, *more)
    check_start(config, prepare(config.data))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(TOKENS)[0]


def test_arms_of_all_seeds_start_where_the_checkpoint_ended(
    words: list[str], trained: tuple[Record, Path], tmp_path: Path
) -> None:
    record, folder = trained
    config = started(words, folder, "scope=micro")
    corpus = prepare(config.data)
    run = run_experiment(config, corpus, tmp_path / "runs")
    assert run.rows()[0]["valid/nats"] == pytest.approx(record.summary()["valid/nats"], abs=1e-6)
    assert run.manifest()["science"]["model.init"] == config.model.weights["hash"]
    other = started(words, folder, "scope=global", "seed=3")
    models = [make_model(each, corpus.vocab_size).state_dict() for each in (config, other)]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    perturbed = started(words, folder, "router.perturb=1e-6")
    apart = make_model(perturbed, corpus.vocab_size).state_dict()
    odd = [name for name in apart if not torch.equal(apart[name], models[0][name])]
    assert odd
    assert all(name.endswith("router.weight") for name in odd)


def test_the_identity_is_of_weights_and_not_of_their_path(
    words: list[str], trained: tuple[Record, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(trained[1], folder)
    config, moved = started(words, trained[1]), started(words, folder)
    plain = Composer().compose(words)
    assert run_name(config, "0") == run_name(moved, "0") != run_name(plain, "0")
    assert stack_key(config) == stack_key(plain)
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["lm_head.weight"] = weights["lm_head.weight"] * 2
    save_file(weights, file)
    corpus = prepare(config.data)
    with pytest.raises(ConfigError, match="has other weights now than the config says"):
        check_start(moved, corpus)
    assert arm_hash(started(words, folder), "0") != arm_hash(config, "0")


SIZES = ["model.d_model=32", "model.num_layers=2", "model.num_heads=4", "model.num_experts=8"]


def published(kind: str, folder: Path, **more: Any) -> torch.Tensor:
    """Save a small Qwen3 or Qwen3Moe whose norms are learned; its logits."""
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        **more,
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "k_norm" in name:  # a gain for each pair of the rotation
                parameter.copy_(torch.rand(4).add(0.5).repeat(2))
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    return logits(lambda tokens: [model(tokens).logits])


def test_a_dense_checkpoint_becomes_equal_experts(words: list[str], tmp_path: Path) -> None:
    theirs = published("Qwen3", tmp_path, tie_word_embeddings=True)
    sizes = [*SIZES, "model.expert_dim=48"]
    made = started(words, tmp_path, *sizes, "router.scale=1")
    check_start(made, prepare(made.data))
    model = make_model(made, 256)
    assert (logits(model) - theirs).abs().max() <= 1e-5
    experts = model.expert_weights[1]
    assert torch.equal(experts[0], experts[7])
    other = make_model(started(words, tmp_path, *sizes, "seed=1"), 256)
    assert not torch.equal(model.router_weights[0], other.router_weights[0])


def test_learned_norms_go_into_the_matrices_behind_them(words: list[str], tmp_path: Path) -> None:
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    theirs = published("Qwen3Moe", tmp_path, norm_topk_prob=True, **experts)
    made = started(words, tmp_path, *SIZES, "model.top_k=2", "model.expert_dim=16")
    check_start(made, prepare(made.data))
    assert (logits(make_model(made, 256)) - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["model.d_model=64"], "model.d_model=64: .* has hidden_size=32; use model.d_model=32"),
        (
            ["model.num_experts=6", "model.top_k=1"],
            "model.num_experts=6: .* has num_experts=8; use model.num_experts=8 model.top_k=2",
        ),
        (["model.num_shared_experts=1"], "num_shared_experts=1: .* has none; use .*experts=0"),
        (
            ["router.renormalize=false"],
            "=False: .* norm_topk_prob=True; use router.renormalize=True",
        ),
        (["model.dense_layers=1"], "model.dense_layers=1: layer 0 of .* has experts; use .*=0"),
        (["data.tokenizer=bpe", "data.vocab_size=280"], "data.tokenizer=bpe: has 280 tokens, and"),
    ],
)
def test_sizes_that_do_not_fit(
    more: list[str], line: str, words: list[str], trained: tuple[Record, Path]
) -> None:
    with pytest.raises(ConfigError, match=line):
        check(words, trained[1], *more)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"model_type": "mixtral"}, "model_type=mixtral has another architecture"),
        (
            {"rope_theta": 1e6},
            "has rope_theta=1000000.0, and moebench computes 10000.0; name .*moebench.hooks$",
        ),
        ({"head_dim": 128}, "has head_dim=128, and moebench computes 16; name a checkpoint"),
        ({"hidden_size": "wide"}, "config.json: hidden_size is not a whole number from 1"),
        (
            {"quantization_config": {"quant_method": "fp8"}},
            "config.json: quantization_config: its weights are quantised; save the model in BF16",
        ),
        ({"decoder_sparse_step": []}, "config.json: decoder_sparse_step is not a whole number"),
    ],
)
def test_checkpoints_that_cannot_be_used(
    change: dict[str, Any],
    line: str,
    words: list[str],
    trained: tuple[Record, Path],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(trained[1], folder)
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | change))
    with pytest.raises(ConfigError, match=line):
        check(words, folder)


def test_broken_weights_and_folders_are_named(
    words: list[str], trained: tuple[Record, Path], tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match=r"has no config.json; name a folder that moebench export"
    ):
        started(words, tmp_path / "nothing")
    folder = tmp_path / "model"
    shutil.copytree(trained[1], folder)
    file = folder / "model.safetensors"
    weights = load_file(file)
    name = "model.layers.0.self_attn.k_norm.weight"
    for value, line in (
        (None, f"it lacks {name}"),
        (
            torch.arange(1.0, 1 + len(weights[name])),
            "k_norm whose halves differ.* balance it in its own trainer",
        ),
        (weights[name] * torch.nan, f"it has NaN or infinity in {name}"),
    ):
        changed = {key: each for key, each in weights.items() if key != name or value is not None}
        save_file(changed | ({} if value is None else {name: value}), file)
        with pytest.raises(ConfigError, match=line):
            make_model(started(words, folder), 256)
    file.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="cannot be used"):
        make_model(started(words, folder), 256)
    file.unlink()
    with pytest.raises(ConfigError, match=r"has no \*.safetensors"):
        started(words, folder)


def test_tensors_that_are_no_floats_or_that_nothing_reads_are_named(
    words: list[str], trained: tuple[Record, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(trained[1], folder)
    file = folder / "model.safetensors"
    weights = load_file(file)
    name = "model.layers.0.self_attn.k_norm.weight"
    sound = weights[name]
    for value, found in (
        (sound.to(torch.float8_e4m3fn), "F8_E4M3"),
        (sound.to(torch.complex64), "C64"),
        (sound.bool(), "BOOL"),
        (sound.int(), "I32"),
    ):
        save_file(weights | {name: value}, file)
        line = f"{file}: {name} is {found}, and weights are F16, BF16, F32 or F64; save the model"
        with pytest.raises(ConfigError, match=re.escape(line)):
            make_model(started(words, folder), 256)
    others = {f"model.layers.{layer}.self_attn.q_proj.bias": sound.clone() for layer in (9, 0)}
    save_file(weights | others, file)
    line = f"{file}: nothing here reads {min(others)} and 1 more; restore the config.json that"
    with pytest.raises(ConfigError, match=re.escape(line)):
        make_model(started(words, folder), 256)


@pytest.mark.parametrize(
    "setting",
    [
        {"padding": {**PADDING, "strategy": {"Fixed": 100_000}}},
        {"truncation": {**TRUNCATION, "max_length": 1, "stride": 9}},
    ],
)
def test_a_tokenizer_is_compared_without_its_padding_and_truncation(
    setting: dict[str, Any],
    words: list[str],
    trained: tuple[Record, Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(trained[1], folder)
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | setting))
    check(words, folder)
    assert not capfd.readouterr().err

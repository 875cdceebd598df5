"""A checkpoint as a Hugging Face model: equal logits, equal tokens, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moebench.config.compose import Composer
from moebench.data.corpus import prepare
from moebench.data.tokenizer import END_WORD, Subwords
from moebench.errors import ConfigError
from moebench.evaluate import open_checkpoint
from moebench.experiment import run_experiment
from moebench.export import export
from moebench.records import Record
from moebench.sample import continued, decoded, encoded
from moebench.train.build import make_model

LITTLE = [
    *("model=smoke", "train.steps=2", "global_bsz=8", "seq_len=32", "data.valid_sequences=4"),
    *("data=folder", "run.device=cpu", "run.threads=1"),
]


def made(folder: Path, text_folder: Path, *more: str) -> Record:
    config = Composer().compose([*LITTLE, f"data.path={text_folder}", *more])
    return run_experiment(config, prepare(config.data), folder)


def loaded(folder: Path) -> tuple[Any, Any]:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["model.dense_layers=1", "router.scale=2.5", "router.expert_scale=true", "optim.lr=0.01"],
        ["data.tokenizer=bpe", "data.vocab_size=300", "router.renormalize=false", "scope=none"],
    ],
)
def test_a_model_that_is_loaded_by_transformers_has_equal_logits(
    words: list[str], text_folder: Path, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(made(tmp_path / "runs", text_folder, *words))
    export(checkpoint, tmp_path / "model")
    model, tokenizer = loaded(tmp_path / "model")
    text = "Where to go? Straße, 你好, 1984\n\n  x = y"
    tokens = tokenizer(text)["input_ids"]
    assert tokens == checkpoint.tokenizer.encode(text.encode()).tolist()
    assert tokenizer.decode(tokens) == text
    end = tokenizer.convert_tokens_to_ids(END_WORD)
    assert tokenizer.eos_token_id == checkpoint.tokenizer.end == end
    file = tmp_path / "model/tokenizer.json"
    again = Subwords(file.read_bytes(), str(file))  # as data.tokenizer=FILE reads it
    assert (again.end, again.vocab_size) == (end, end + 1)
    assert again.encode(text.encode()).tolist() == tokens
    inputs = torch.tensor([[tokenizer.eos_token_id, *tokens][:32]])
    with torch.no_grad():
        ours, theirs = checkpoint(inputs)[0], model(inputs).logits
    assert (ours - theirs).abs().max() <= 1e-5
    config = checkpoint.config
    starting = replace(config.model, init=str(tmp_path / "model"))
    with torch.no_grad():
        start = make_model(replace(config, model=starting), checkpoint.tokenizer.vocab_size)
        assert (start(inputs)[0] - ours).abs().max() <= 1e-5
    card = (tmp_path / "model/README.md").read_text()
    assert checkpoint.record.name in card
    assert checkpoint.record.manifest()["data"]["content_hash"] in card
    with pytest.raises(ConfigError, match="is in use; name a new folder"):
        export(checkpoint, tmp_path / "model")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["router=sigmoid", "method=bias"], "router.gate, method=bias, which steers"),
        (["model.num_shared_experts=1"], "model.num_shared_experts"),
        (["router=hash"], "a router that is prescribed"),
        (["data.mask_documents=true"], "data.mask_documents"),
        (["data.domain_token=true"], "data.domain_token"),
    ],
)
def test_what_the_architecture_does_not_compute_is_refused(
    words: list[str], named: str, text_folder: Path, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(made(tmp_path / "runs", text_folder, *words))
    with pytest.raises(ConfigError, match=f"Qwen3-MoE has nothing for {named}"):
        export(checkpoint, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_samples(text_folder: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(made(tmp_path, text_folder))
    begin = encoded(checkpoint, "The ")
    greedy = list(continued(checkpoint, begin, number=40, temperature=0.0))
    slowly = list(begin)
    with torch.no_grad():
        for token in greedy:  # past the length of a sequence, from the last tokens
            logits, _ = checkpoint(torch.tensor([slowly[-32:]]))
            assert int(logits[0, -1].argmax()) == token
            slowly.append(token)
    drawn = [list(continued(checkpoint, begin, number=20, seed=seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert list(continued(checkpoint, begin, number=40, top_k=1)) == greedy
    assert decoded(checkpoint, [*b"So"]) == "So"
    assert len(np.unique(np.concatenate(drawn))) > 10
    with pytest.raises(ConfigError, match="--prompt: is not valid UTF-8"):
        encoded(checkpoint, "\udcff")

"""`moebench inspect --hf`: checkpoints that are right, particular or broken."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from moebench.cli.output import print_json
from tests.calls import Call
from tests.hooks.families import build, save

SIZE = ("--sequences", 4, "--seq-len", 16, "--micro-bsz", 2)
WORDS = 256  # the tokenizer's

pytest.importorskip("transformers")


def inspected(call: Call, folder: Path, text_folder: Path) -> dict[str, Any]:
    result = call("inspect", "--hf", folder, "--data", text_folder, *SIZE, "--json")
    assert result.code == 0, result.err

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(result.out, parse_constant=refuse)


def test_a_correction_bias_moves_the_routing(call: Call, text_folder: Path, tmp_path: Path) -> None:
    """A bias of 10 on experts 0 and 1 of GLM-4-MoE sends every token there."""
    model = build("glm4_moe", vocab_size=WORDS, n_group=1)
    for name, each in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            each.zero_()[:2] = 10
    printed = inspected(call, save(model, tmp_path), text_folder)
    assert printed["layers"] == ["model.layers.1.mlp.experts", "model.layers.2.mlp.experts"]
    assert printed["counts"] == [[[64, 64, 0, 0, 0, 0, 0, 0]] * 3] * 2
    for name in ("max_vio_micro", "max_vio_batch", "max_vio_global"):
        assert printed["metrics"][f"load/{name}"] == pytest.approx(3)
    assert printed["metrics"]["load/dead_experts"] == 6 / 8


def test_what_is_not_known_is_left_out_and_said(
    call: Call, text_folder: Path, tmp_path: Path
) -> None:
    """The weights of Phi-MoE are no function of its logits alone, so neither is a loss."""
    printed = inspected(call, save(build("phimoe", vocab_size=WORDS), tmp_path), text_folder)
    assert any("fit no known gate" in each for each in printed["about"])
    assert not [each for each in printed["metrics"] if each.startswith(("train/", "router/"))]
    assert printed["metrics"]["load/max_vio_batch"] > 0


def change(folder: Path, edit: Callable[[str, torch.Tensor], torch.Tensor | None]) -> None:
    """Edit or leave out weights of a checkpoint."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    made = {name: edit(name, each) for name, each in load_file(path).items()}
    kept = {name: each for name, each in made.items() if each is not None}
    save_file(kept, path, metadata={"format": "pt"})


def refused(call: Call, folder: Path, text_folder: Path) -> str:
    """The one line about a checkpoint that cannot be used."""
    result = call("inspect", "--hf", folder, "--data", text_folder, *SIZE, "--json")
    assert (result.code, result.out) == (2, "")
    assert result.err.count("\n") == 1
    return result.err.removeprefix(f"error: --hf={folder}").rstrip()


def test_weights_that_are_missing_or_not_finite_are_named(
    call: Call, text_folder: Path, tmp_path: Path
) -> None:
    gate = "model.layers.0.mlp.gate.weight"
    model = build("mixtral", vocab_size=WORDS)
    for number, (new, wanted) in enumerate(
        (
            (lambda each: each * torch.nan, f": has NaN or infinity in {gate}; name a checkpoint "),
            (lambda each: None, f": lacks {gate}, which would be random; save the whole model"),
            (
                lambda each: each[:, :5].contiguous(),
                ": the shapes of config.json are not those of the weights: "
                f"{gate} is [8, 5] in place of [8, 32]; restore the config",
            ),
        )
    ):
        folder = save(model, tmp_path / str(number))
        change(
            folder,
            lambda name, each, new=new: new(each) if "0" in name and "gate." in name else each,
        )
        assert refused(call, folder, text_folder).startswith(wanted)


def test_weights_of_wrong_sizes_are_named(call: Call, text_folder: Path, tmp_path: Path) -> None:
    """One expert that is too small, or a config with fewer layers than there are weights of."""
    folder = save(build("mixtral", vocab_size=WORDS), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    line = refused(call, folder, text_folder)
    assert line.startswith(": config.json leaves out model.layers.1.mlp.gate.weight and ")
    (folder / "config.json").write_text(json.dumps(config))
    odd = "model.layers.1.block_sparse_moe.experts.2.w1.weight"
    change(folder, lambda name, each: each[:-1].contiguous() if name == odd else each)
    wanted = f": weights differ in shape that should not: {odd} is [15, 32], 23 others are [16, 32]"
    assert refused(call, folder, text_folder).startswith(wanted)


def test_a_config_or_tokenizer_that_does_not_fit_is_said_before_weights_are_loaded(
    call: Call, text_folder: Path, tmp_path: Path
) -> None:
    folder = save(build("mixtral", vocab_size=WORDS), tmp_path)
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    for key, value, wanted in (
        ("num_experts_per_tok", 9, "num_experts_per_tok=9: must be between 1 and num_"),
        ("num_experts_per_tok", "two", "Field 'num_experts_per_tok' expected int"),
        ("vocab_size", 9, ", and config.json has vocab_size=9; copy the tokenizer that"),
    ):
        (folder / "config.json").write_text(json.dumps(config | {key: value}))
        assert wanted in refused(call, folder, text_folder)
    (folder / "config.json").write_text(json.dumps(config))
    assert "no file named model.safetensors" in refused(call, folder, text_folder)
    (folder / "tokenizer.json").write_text("{}")
    assert "copy the tokenizer's files" in refused(call, folder, text_folder)
    for content in ("{", "[]"):
        (folder / "config.json").write_text(content)
        assert refused(call, folder, text_folder).startswith("/config.json: cannot be read (")


def test_no_code_of_a_checkpoint_is_run(
    call: Call, text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where the library knows the family, nor where it would ask whether to run it."""
    monkeypatch.setattr("builtins.input", lambda *_: "yes")
    folder = save(build("mixtral", vocab_size=WORDS), tmp_path / "model")
    ran = tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own: pass\n")
    config = json.loads((folder / "config.json").read_text())
    own = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"), "own.Own")
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": own}))
    assert inspected(call, folder, text_folder)["counts"]
    (folder / "config.json").write_text(
        json.dumps({**config, "auto_map": own, "model_type": "mine"})
    )
    line = refused(call, folder, text_folder)
    assert "model_type=mine: needs code of the checkpoint, which is never run" in line
    assert not ran.exists()


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": (float("-inf"), 2)}})
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"schema_version": 1, "a": None, "b": [None, 1.5], "c": {"d": [None, 2]}}

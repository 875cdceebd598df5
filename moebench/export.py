"""A run's checkpoint as a Hugging Face model: Qwen3-MoE, whose architecture holds ours unchanged.

`moebench.model.qwen3` has the weights. What Qwen3-MoE does not compute is refused. The files are
written here, so transformers is not needed.
"""

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from moebench import __version__
from moebench.config.schema import ExperimentConfig
from moebench.data.tokenizer import BYTES, END_WORD, FILE, letters
from moebench.disk import replacing_folder
from moebench.errors import ConfigError
from moebench.evaluate import Checkpoint
from moebench.model.gating import Gating
from moebench.model.norm import EPS
from moebench.model.qwen3 import to_qwen3
from moebench.model.rotary import ROPE_BASE

# of a router, in training only, or folded into the experts
FREE = {"jitter", "noise", "drop", "group_bsz", "observes", "counts", "renormalize", "scale"}
FREE |= {"expert_scale", "method"}


def export(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a model, its tokenizer and a model card.

    Its logits are those of the checkpoint in fp32, up to rounding, and its generation ends at the
    token that ends a document.

    Args:
        checkpoint: of a run.
        folder: a new or empty one.

    Raises:
        ConfigError: if the folder is in use, or if Qwen3-MoE cannot compute what the model does.
        OSError: if a file cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--to={folder}: is in use; name a new folder")
    _refuse(checkpoint)
    with replacing_folder(folder) as aside:
        # copies, since names that share memory cannot be saved
        model = checkpoint.model.float().cpu()
        weights = {name: value.clone().contiguous() for name, value in to_qwen3(model)}
        save_file(weights, aside / "model.safetensors", {"format": "pt"})
        _tokenizer(checkpoint).save(str(aside / FILE))
        for name, content in (
            ("config.json", _config(checkpoint)),
            ("generation_config.json", {"eos_token_id": checkpoint.tokenizer.end}),
            ("tokenizer_config.json", _tokenizer_config(checkpoint.config)),
        ):
            (aside / name).write_text(json.dumps(content, indent=2) + "\n")
        (aside / "README.md").write_text(_card(checkpoint))


def _refuse(checkpoint: Checkpoint) -> None:
    """Raise ConfigError, with the keys, for what Qwen3-MoE does not compute."""
    config, steering = checkpoint.config, checkpoint.steering
    found = [_KEYS.get(name, f"router.{name}") for name in _foreign(checkpoint.model.gating)]
    if config.model.num_shared_experts:
        found.append("model.num_shared_experts")
    if config.model.zero_experts:
        found.append("model.zero_experts")
    if config.data.domain_token:
        found.append("data.domain_token")
    if config.data.mask_documents:
        found.append("data.mask_documents")
    if checkpoint.prescription is not None:
        found.append("a router that is prescribed")
    if steering is not None and any(
        value is not None for value in (steering.bias, steering.factor, steering.mask)
    ):
        found.append(f"method={config.method.name}, which steers the selection of experts")
    if found:
        raise ConfigError(
            f"{checkpoint.record.path}: Qwen3-MoE has nothing for {', '.join(found)}; export a run "
            "without"
        )


_KEYS = {  # of settings that have another name than their key, or no key of their own
    "bias": "router.gate_bias",
    "shared_gate": "model.num_shared_experts",
    "partial": "router.replay",
    **dict.fromkeys(("shift", "threshold", "by_logits"), "method"),
}


def _foreign(gating: Gating) -> Iterator[str]:
    """Settings of a router that change what it selects or weighs in evaluation."""
    plain = Gating()
    for name in (each.name for each in fields(Gating)):
        if name not in FREE and getattr(gating, name) != getattr(plain, name):
            yield name


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    model, shape = checkpoint.model, checkpoint.config.model
    dense = [number for number, block in enumerate(model.blocks) if block.gating is None]  # pyright: ignore
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "vocab_size": len(model.embedding),
        "hidden_size": shape.d_model,
        "intermediate_size": (shape.top_k + shape.num_shared_experts) * shape.expert_dim,
        "moe_intermediate_size": shape.expert_dim,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_heads,
        "head_dim": model.head_width,
        "hidden_act": "silu",
        "max_position_embeddings": checkpoint.config.seq_len,
        "rms_norm_eps": EPS,
        "rope_theta": ROPE_BASE,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "num_experts": shape.num_experts,
        "num_experts_per_tok": shape.top_k,
        "norm_topk_prob": model.gating.renormalize,
        "decoder_sparse_step": 1,
        "mlp_only_layers": dense,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.0,
        "bos_token_id": None,
        "eos_token_id": checkpoint.tokenizer.end,
        "dtype": "float32",
    }


def _tokenizer(checkpoint: Checkpoint) -> Backend:
    """The tokenizer, with the token that ends a document as its last and only special one."""
    if checkpoint.config.data.tokenizer == BYTES:
        vocabulary = {letter: byte for letter, byte in letters().items() if byte < 255}
        backend = Backend(models.BPE(vocab=vocabulary, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(  # type: ignore
            add_prefix_space=False, use_regex=False
        )
        backend.decoder = decoders.ByteLevel()  # type: ignore
    else:
        backend = Backend.from_file(str(checkpoint.corpus.directory / FILE))
    backend.add_special_tokens([AddedToken(END_WORD, special=True, normalized=False)])
    if backend.token_to_id(END_WORD) != checkpoint.tokenizer.end:
        raise ConfigError(
            f"data.tokenizer={checkpoint.config.data.tokenizer}: its tokens are not numbered "
            "without gaps, so that none can be added; export a run with another tokenizer"
        )
    return backend


def _tokenizer_config(config: ExperimentConfig) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_WORD,
        "model_max_length": config.seq_len,
        "clean_up_tokenization_spaces": False,
    }


def _card(checkpoint: Checkpoint) -> str:
    """A model card: what the model is, how it was trained, and its figures."""
    record, manifest = checkpoint.record, checkpoint.record.manifest()
    commit = (manifest.get("git") or {}).get("commit", "unknown")
    done = record.is_done() and checkpoint.step == checkpoint.config.train.steps
    figures = record.summary() if done else {}
    rows = [
        f"| `{name}` | {figures[name]:.4f} |"
        for name in ("valid/nats", "valid/ppl", "load/max_vio_global", "specialization/domain")
        if isinstance(figures.get(name), int | float)
    ]
    table = ["", "| metric | value |", "|---|---|", *rows] if rows else []
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "tags: [mixture-of-experts, moebench]",
            "---",
            f"# {record.name}",
            "",
            "A small Mixture-of-Experts language model. It was trained to compare ways to balance "
            "routers, and is not meant for use.",
            "",
            f"- Arm: `{manifest.get('arm')}`, seed {checkpoint.config.seed}, step "
            f"{checkpoint.step} of {checkpoint.config.train.steps}",
            f"- Data: content hash `{manifest['data']['content_hash']}`, domains "
            + ", ".join(manifest["domains"]),
            f"- moebench {__version__}, commit `{commit}`",
            f"- Architecture: Qwen3-MoE with norm weights of 1, {checkpoint.config.seq_len} tokens",
            *table,
            "",
        ]
    )

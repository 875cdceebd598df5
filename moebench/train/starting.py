"""A run that starts from the weights of a Hugging Face checkpoint (`model.init`)."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from moebench.config.schema import ExperimentConfig
from moebench.config.starting import read_description, weights_of
from moebench.data.corpus import Corpus
from moebench.data.tokenizer import FILE, refusing
from moebench.disk import open_regular, read_bytes, reason
from moebench.errors import ConfigError
from moebench.model.norm import EPS
from moebench.model.qwen3 import from_qwen3
from moebench.model.rotary import ROPE_BASE
from moebench.model.transformer import MoETransformer

COMPARED = 2000  # tokens of each domain by which tokenizers are compared
FLOATS = ("F16", "BF16", "F32", "F64")  # as safetensors calls them


def check_start(config: ExperimentConfig, corpus: Corpus) -> None:
    """Raise ConfigError if a run cannot start from the checkpoint that its config names."""
    path = config.model.init
    if path is None:
        return
    where = f"model.init={path}"
    if weights_of(config, path) != config.model.weights:
        raise ConfigError(
            f"{where}: has other weights now than the config says; restore them, or set "
            "model.weights={} to take what is there"
        )
    described = read_description(path)
    for key, value in _fixed(config).items():
        found = _setting(described, key)
        if found not in (None, value):
            raise ConfigError(
                f"{where}: config.json has {key}={found}, and moebench computes {value}; name a "
                "checkpoint with that, or balance this one in its own trainer, by moebench.hooks"
            )
    size = described.get("vocab_size")
    if size != corpus.vocab_size:
        raise ConfigError(
            f"data.tokenizer={config.data.tokenizer}: has {corpus.vocab_size} tokens, and {where} "
            f"has vocab_size={size}; use the tokenizer that the checkpoint was trained with"
        )
    _check_tokens(config, corpus, Path(path, FILE))


def _fixed(config: ExperimentConfig) -> dict[str, Any]:
    """What a checkpoint may not have otherwise, as config.json calls it."""
    return {
        "head_dim": config.model.d_model // config.model.num_heads,
        "hidden_act": "silu",
        "rms_norm_eps": EPS,
        "rope_theta": ROPE_BASE,
        "rope_type": "default",
        "attention_bias": False,
        "use_sliding_window": False,
    }


def _setting(described: dict[str, Any], key: str) -> Any:
    """A value of config.json. transformers 5 has those of the rotation in a table of their own."""
    table = described.get("rope_parameters") or described.get("rope_scaling") or {}
    return table.get(key, described.get(key))


def _check_tokens(config: ExperimentConfig, corpus: Corpus, file: Path) -> None:
    """Compare the checkpoint's tokenizer, if it is there, on the text of the run."""
    from tokenizers import Tokenizer

    if not file.exists():
        return
    where = f"model.init={file.parent}: its {FILE}"
    try:
        content = read_bytes(file).decode()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where} cannot be read ({reason(error)}); restore it") from None
    with refusing(f"{where} is no tokenizer"):
        theirs = Tokenizer.from_str(content)
    theirs.no_padding()
    theirs.no_truncation()
    theirs.encode_special_tokens = True
    for domain in corpus.domains:
        text = corpus.tokenizer.decode(corpus.valid(domain, "test")[:COMPARED])
        own = corpus.tokenizer.encode(text.encode()).tolist()
        with refusing(f"{where} cannot encode the text"):
            same = theirs.encode(text, add_special_tokens=False).ids == own
        if not same:
            raise ConfigError(
                f"data.tokenizer={config.data.tokenizer}: encodes the text otherwise than {file}, "
                f"with which the checkpoint was trained; use data.tokenizer={file}"
            )


def start_from(model: MoETransformer, config: ExperimentConfig) -> None:
    """Set a fresh model's weights to those of `model.init`; see `from_qwen3`.

    Raises ConfigError for weights that do not fit the model, are no floats, or that nothing reads.
    """
    path = config.model.init
    assert path is not None
    unread: dict[str, Path] = {}
    try:
        files = _files(Path(path))
        unread |= {name: file for name, (file, _) in files.items()}
        dtype = model.embedding.dtype

        def read(name: str) -> Tensor | None:
            unread.pop(name, None)
            return files[name][1].get_tensor(name).to(dtype) if name in files else None

        from_qwen3(model, read)
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(
            f"model.init={path}: cannot be used: it {reason(error)}; name a checkpoint that fits"
        ) from None
    if unread:
        first = min(unread)
        more = f" and {len(unread) - 1} more" if len(unread) > 1 else ""
        raise ConfigError(
            f"model.init={unread[first]}: nothing here reads {first}{more}; restore the "
            "config.json that was saved with the weights, or name a checkpoint without them"
        )


def _files(folder: Path) -> dict[str, tuple[Path, Any]]:
    """The file of each tensor of a checkpoint, and its content, by the tensor's name.

    Raises:
        ConfigError: for a tensor that is no float of 16 bits or more.
        OSError, SafetensorError: for a file that cannot be read.
    """
    files: dict[str, tuple[Path, Any]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with open_regular(file):  # else to map it could wait for a pipe
            pass
        content = safe_open(file, "pt")
        for name in content.keys():  # noqa: SIM118, it is no dict
            kind = content.get_slice(name).get_dtype()
            if kind not in FLOATS:
                raise ConfigError(
                    f"model.init={file}: {name} is {kind}, and weights are F16, BF16, F32 or F64; "
                    "save the model in one of them"
                )
            files[name] = file, content
    return files

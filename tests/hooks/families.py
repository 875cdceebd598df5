"""Every MoE family of the installed transformers, built tiny with random weights and biases."""

import re
from collections import Counter
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

EXPERTS = re.compile(r"class \w*Experts\b|class \w*MoE\b")
# what a field of that name is in a tiny model, wherever a config has it
TINY: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "unpadded_vocab_size", "vocab_size_per_layer_input"), 64),
    **dict.fromkeys(("hidden_size", "d_model", "text_hidden_size", "out_hidden_size"), 32),
    **dict.fromkeys(("adapter_in_dim", "adapter_out_dim", "adapter_input_size"), 32),
    **dict.fromkeys(("hidden_size_per_layer_input", "projection_hidden_dim"), 8),
    **dict.fromkeys(("num_hidden_layers", "n_layers", "num_layers"), 3),
    **dict.fromkeys(("depth", "encoder_layers"), 1),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("swa_num_attention_heads", "swa_num_key_value_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "linear_num_heads", "mamba_n_heads"), 4),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "index_n_heads"), 4),
    **dict.fromkeys(("head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("swa_head_dim", "swa_v_head_dim", "global_head_dim", "linear_head_dim"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("qk_head_dim", "mamba_d_head", "index_head_dim"), 16),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank", "moe_hidden_size"), 16),
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size", "ffn_hidden_size"), 16),
    **dict.fromkeys(("expert_ffn_hidden_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("shared_experts_intermediate_size", "share_expert_dim"), 16),
    **dict.fromkeys(("projection_intermediate_size", "projector_hidden_size"), 16),
    **dict.fromkeys(("encoder_ffn_dim", "downsample_hidden_size", "output_dim"), 16),
    **dict.fromkeys(("max_position_embeddings", "max_seq_len", "max_source_positions"), 256),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 8),
    "moe_num_experts": 8,
    **dict.fromkeys(("num_experts_per_tok", "moe_top_k", "top_k_experts", "moe_k"), 2),
    "moe_topk": 2,
    **dict.fromkeys(("n_group", "num_expert_group"), 2),
    **dict.fromkeys(("topk_group", "first_k_dense_replace", "pad_token_id"), 1),
    **dict.fromkeys(("bos_token_id", "eos_token_id"), 2),
    **dict.fromkeys(("position_embedding_size", "num_position_embeddings"), 64),
    **dict.fromkeys(("n_shared_experts",), 1),
    "index_topk": 4,
    "canvas_length": 8,
}
# what a family needs besides; a dict is for a part of the config
ROUTERS = (8, 9, 10, 12, 16)  # rows of a router: its experts, and what else it may choose
SPARSE = ["dense", "sparse", "sparse"]
ROPE = {"rope_type": "default", "rope_theta": 1e4}
MORE: dict[str, dict[str, Any]] = {
    "beam": {"mlp_layer_types": SPARSE},
    "dbrx": {"attn_config": {"rope_theta": 1e4, "clip_qkv": 8.0}},
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": SPARSE}},
    "doge": {"is_moe": True, "num_experts": 16},
    "dots3_note": {
        "text_config": {"layer_types": ["full_attention"] * 3},
        "vision_config": {"mlp_layer_types": ["dense"] * 3},
    },
    "dots3_note_text": {"layer_types": ["full_attention"] * 3},
    "ernie4_5_vl_moe": {
        "text_config": {
            "moe_intermediate_size": [16, 16],
            "rope_parameters": {**ROPE, "mrope_section": [1, 1, 2]},
            "mlp_layer_types": SPARSE,
        }
    },
    "flint": {"mlp_layer_types": SPARSE},
    "gemma4": {"text_config": {"enable_moe_block": True}},
    "gemma4_text": {"enable_moe_block": True},
    "glm4v_moe": {
        "text_config": {
            "head_dim": 16,
            "rope_parameters": {**ROPE, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 2]},
        }
    },
    "glm5_next": {
        "text_config": {"index_topk": 16, "qk_rope_head_dim": 0, "mlp_layer_types": SPARSE}
    },
    "jetmoe": {"kv_channels": 8},
    "lfm2_moe": {
        "layer_types": ["conv", "full_attention", "full_attention"],
        "num_dense_layers": 1,
    },
    "longcat_flash": {"zero_expert_num": 4},
    "mimo_v2_flash": {"layer_types": ["full_attention"] * 3},
    "muse_spark": {
        "audio_config": {
            **dict.fromkeys(("patch_sizes", "depths"), (1, 1, 1)),
            "hidden_sizes": (8, 8, 8),
        }
    },
    "qwen3_omni_moe": {
        "talker_config": {
            "text_config": {"shared_expert_intermediate_size": 16},
            "spatial_merge_size": 2,
        },
    },
    "step3p7": {"text_config": {"sliding_window": 8, "mlp_layer_types": SPARSE}},
    "zaya": {"num_experts_per_tok": 1},
}


def library() -> Any:
    """transformers, without types: to read all its models takes pyright a third of its time."""
    return import_module("transformers")


@cache
def families() -> list[str]:
    """The `model_type` of every family with a class of experts, found in the library's source."""
    transformers = library()
    auto = import_module("transformers.models.auto.configuration_auto")
    root = Path(transformers.__file__).parent / "models"
    found = []
    for family in transformers.CONFIG_MAPPING:
        folder = root / auto.model_type_to_module_name(family)
        source = "".join(path.read_text() for path in sorted(folder.glob("modeling_*.py")))
        if EXPERTS.search(source):
            found.append(family)
    return found


def _tiny(kind: Any, more: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a config class that make it tiny."""
    transformers = library()
    fields = kind.__dataclass_fields__
    parts = {}
    for name, part in kind.sub_configs.items():
        auto = part is transformers.AutoConfig
        part_kind: Any = type(getattr(kind(), name, None)) if auto else part
        if hasattr(part_kind, "sub_configs"):
            small = _tiny(part_kind, more.get(name, {}))
            parts[name] = {"model_type": part_kind.model_type, **small}
    small = {name: value for name, value in TINY.items() if name in fields}
    own = {name: value for name, value in more.items() if name not in kind.sub_configs}
    return {**small, **own, **parts}


def build(family: str, **more: Any) -> nn.Module:
    """A model of the family, with random weights and random biases of its routers, not zero."""
    from moebench.inspect.hf_loading import language_model

    transformers = library()
    kind = transformers.CONFIG_MAPPING[family]
    config = kind(**_tiny(kind, {**MORE.get(family, {}), **more}))
    torch.manual_seed(sum(family.encode()))
    auto = language_model(kind, transformers)
    model = auto.from_config(config, experts_implementation="eager").eval()
    randomise(model)
    return model


def save(model: Any, folder: Path) -> Path:
    """A checkpoint of the model, with a tokenizer whose tokens are bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    transformers = library()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({each: at for at, each in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore
    backend.decoder = decoders.ByteLevel()  # type: ignore
    transformers.logging.disable_progress_bar()
    model.save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(folder)
    return folder


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Random routers and biases, since initial ones are small or zero; hash tables, too."""
    for name, each in [*model.named_parameters(), *model.named_buffers()]:
        if re.search("correction_bias|expert_bias|balancing_bias", name):
            each.copy_(0.1 * torch.randn(each.shape))
            if "balancing" in name:
                each[-1] = 0.15  # of the expert that skips the layer, which initially gets nothing
        elif name.endswith("per_expert_scale"):
            each.copy_(1 + 0.1 * torch.randn(each.shape))
        elif name.endswith("tid2eid"):
            each.copy_(torch.rand(len(each), 8).argsort(-1)[:, : each.shape[1]])
        elif re.search(r"rout|gat(e|ing)\.", name) and each.dim() == 2 and len(each) in ROUTERS:
            each.copy_(torch.randn(each.shape))


class Computed(TorchFunctionMode):
    """Counts the rows that each expert's matrices are multiplied with, whoever asks for it.

    Attributes:
        rows: name of a parameter -> expert -> rows.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.rows: dict[str, Counter[int]] = {}
        self._parameters = dict(model.named_parameters())
        self._names = {
            each.untyped_storage().data_ptr(): name for name, each in self._parameters.items()
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("linear", "matmul", "__matmul__", "bmm") and len(args) > 1:
            self._multiplied(args[0], args[1])
        elif name == "embedding":
            table = next(each for each in args if each.is_floating_point())
            index = next(each for each in args if not each.is_floating_point())
            self._of(table).update(index.flatten().tolist())
        return func(*args, **(kwargs or {}))

    def _of(self, weight: Tensor) -> Counter[int]:
        name = self._names.get(weight.untyped_storage().data_ptr(), "")
        return self.rows.setdefault(name, Counter())

    def _multiplied(self, rows: Tensor, weight: Tensor) -> None:
        """A part of a parameter is one expert's; of a whole one, rows of zeros are not counted."""
        name = self._names.get(weight.untyped_storage().data_ptr(), "")
        whole = self._parameters.get(name)
        if whole is not None and weight.shape == whole.shape and weight.dim() == 3:
            used = (rows != 0).any(-1).sum(-1).tolist()
            self._of(weight).update(dict(enumerate(used)))
        elif whole is not None and weight.dim() == 2 and weight.numel() < whole.numel():
            expert = weight.storage_offset() // weight.numel()
            self._of(weight)[expert] += rows.numel() // rows.shape[-1]

    def of_layer(self, name: str) -> dict[str, list[int]]:
        """A parameter -> the rows of each expert, of the parameters of a module."""
        return {
            each: [rows[expert] for expert in range(len(self._parameters[each]))]
            for each, rows in self.rows.items()
            if each.startswith(f"{name}.") and "shared" not in each
        }

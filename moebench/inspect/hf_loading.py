"""A Hugging Face checkpoint on disk: its config, its tokenizer and its weights, cheapest first.

Nothing is downloaded, and no code of a checkpoint is run. What is wrong is one error with a remedy.
"""

import importlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moebench.disk import read_json, reason
from moebench.errors import ConfigError

if TYPE_CHECKING:  # importing torch takes seconds, and a wrong folder is said before
    from torch import Tensor, nn

# of the library, the first that knows the family; a model of text and images is given text alone
MODELS = ("AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
# names that families have for one thing
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
TOP_K = ("num_experts_per_tok", "moe_topk", "moe_top_k", "top_k_experts", "moe_k")

NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")  # of a layer or an expert, in the name of a weight


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose config and tokenizer can be used; its weights are not loaded yet.

    Attributes:
        directory: with config.json, weights and a tokenizer.
        library: transformers.
        config, tokenizer: of the library; the tokenizer gives offsets.
    """

    directory: Path
    library: Any
    config: Any
    tokenizer: Any

    @classmethod
    def open(cls, directory: Path) -> "Checkpoint":
        """Raises ConfigError for a family, a config or a tokenizer that cannot be used."""
        described = read_config(directory)
        library = _transformers()
        _check_family(directory, described, library)
        config = _load(directory, library, library.AutoConfig, "correct config.json")
        if language_model(type(config), library) is None:
            raise ConfigError(
                f"--hf={directory}: {config.model_type} predicts no next token; name a causal MoE"
            )
        _check_top_k(directory, config)
        remedy = "copy the tokenizer's files from where the checkpoint comes from"
        tokenizer = _load(directory, library, library.AutoTokenizer, remedy)
        if not tokenizer.is_fast:
            raise ConfigError(
                f"--hf={directory}: has a slow tokenizer, which gives no offsets; save a fast "
                "tokenizer"
            )
        return cls(directory, library, config, tokenizer)

    @property
    def family(self) -> str:
        return self.config.model_type

    @property
    def vocab_size(self) -> int | None:
        """Tokens that the model knows; None if its config does not say."""
        size = getattr(self.config.get_text_config(), "vocab_size", None)
        return size if isinstance(size, int) else None

    def model(self) -> "nn.Module":
        """The model, on the GPU if there is one.

        Raises ConfigError for a weight that is missing, of another shape or not finite, and for
        weights of layers that config.json leaves out.
        """
        import torch

        where, auto = f"--hf={self.directory}", language_model(type(self.config), self.library)
        more = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # refused below
        try:
            model, told = _load(self.directory, self.library, auto, "save the model again", **more)
        except ConfigError:  # the library joins the weights of all experts, and names none of them
            if odd := _odd_weight(self.directory):
                raise ConfigError(
                    f"{where}: weights differ in shape that should not: {odd}; save the model again"
                ) from None
            raise
        if shapes := {name: shapes for name, *shapes in told["mismatched_keys"]}:
            name = _routers_first(shapes)
            own, wanted = map(list, shapes[name])
            raise ConfigError(
                f"{where}: the shapes of config.json are not those of the weights: {name} is "
                f"{own} in place of {wanted}{_more(shapes)}; restore the config that was saved "
                "with them"
            )
        if unread := _of_more_layers(told["unexpected_keys"], model):
            raise ConfigError(
                f"{where}: config.json leaves out {_routers_first(unread)}{_more(unread)}; restore "
                "the config that was saved with the weights"
            )
        if missing := told["missing_keys"]:
            raise ConfigError(
                f"{where}: lacks {_routers_first(missing)}{_more(missing)}, which would be random; "
                "save the whole model"
            )
        if broken := _not_finite(model):
            raise ConfigError(
                f"{where}: has NaN or infinity in {_routers_first(broken)}{_more(broken)}; name a "
                "checkpoint from before it diverged"
            )
        return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def read_config(directory: Path) -> dict[str, Any]:
    """The content of config.json. It is the first check, and needs no library."""
    try:
        return read_json(directory / "config.json")
    except FileNotFoundError:
        raise ConfigError(
            f"--hf={directory}: has no config.json; name the folder of a checkpoint"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--hf={directory}/config.json: cannot be read ({reason(error)}); save the model again"
        ) from None


def language_model(config: type, library: Any) -> Any:
    """The library's class of language models for a class of configs; None if it has none."""
    known = (getattr(library, name) for name in MODELS)
    return next((auto for auto in known if config in auto._model_mapping), None)


def first_line(error: Exception) -> str:
    """An error of the library in one line; a line that ends in a colon takes the next with it."""
    lines = [line.strip() for line in (str(error) or type(error).__name__).splitlines()]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])


def _transformers() -> Any:
    try:
        # by name, because a type checker needs half a minute for its package of all models
        return importlib.import_module("transformers")
    except ImportError:
        raise ConfigError(
            "--hf: needs the transformers library; run pip install 'moebench[huggingface]'"
        ) from None


def _check_family(directory: Path, described: dict[str, Any], library: Any) -> None:
    """Refuse a `model_type` that the library does not know, since no code of it is run."""
    family = described.get("model_type")
    if isinstance(family, str) and family in library.CONFIG_MAPPING:
        return
    own = "auto_map" in described
    why = "needs code of the checkpoint, which is never run" if own else "is not known"
    raise ConfigError(
        f"--hf={directory}: model_type={family}: {why}; name a checkpoint of a family that "
        f"transformers {library.__version__} has"
    )


def _check_top_k(directory: Path, config: Any) -> None:
    """Refuse more experts a token than there are, or none."""
    of_text = config.get_text_config()
    sizes = []
    for names in (TOP_K, EXPERTS):
        values = ((name, getattr(of_text, name, None)) for name in names)
        sizes.append(next((pair for pair in values if isinstance(pair[1], int)), ("", 0)))
    (key, top_k), (of, experts) = sizes
    if experts and key and not 1 <= top_k <= experts:
        raise ConfigError(
            f"--hf={directory}/config.json: {key}={top_k}: must be between 1 and {of}={experts}; "
            "correct it"
        )


def _load(directory: Path, library: Any, kind: Any, remedy: str, **more: Any) -> Any:
    """What a class of the library loads from the folder, without the library's own warnings."""
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        with _quiet(library):
            return kind.from_pretrained(directory, **local, **more)
    except Exception as error:  # the library raises errors of many types
        raise ConfigError(
            f"--hf={directory}: cannot be loaded ({first_line(error)}); {remedy}"
        ) from None


@contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Without the library's own warnings: what matters of them becomes one line."""
    logs = library.logging
    level, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(level)
        if bars:
            logs.enable_progress_bar()


def _odd_weight(directory: Path) -> str:
    """A weight whose shape is not that of the same weight of most experts or layers; "" if none."""
    from safetensors import safe_open

    shapes: dict[str, dict[str, tuple[int, ...]]] = {}  # by name without numbers
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118, it is no dict
                    shape = tuple(file.get_slice(name).get_shape())
                    shapes.setdefault(NUMBER.sub("", name), {})[name] = shape
        except Exception:  # the library has said what is wrong with the file
            continue
    for alike in shapes.values():
        (usual, count), *_ = Counter(alike.values()).most_common()
        odd = [name for name, shape in alike.items() if shape != usual]
        if odd and len(odd) < count:
            return f"{odd[0]} is {list(alike[odd[0]])}, {count} others are {list(usual)}"
    return ""


def _of_more_layers(names: Collection[str], model: "nn.Module") -> list[str]:
    """The names that are those of the model's weights but for a number, as of a layer it lacks."""
    known = {NUMBER.sub("", name) for name in model.state_dict()}
    return [name for name in names if NUMBER.sub("", name) in known]


def _not_finite(model: "nn.Module") -> list[str]:
    """Weights with NaN or infinity, and buffers with NaN.

    Infinite buffers may be meant: bounds that clip nothing, a bias against an expert.
    """
    import torch

    named = [*model.named_parameters(), *model.named_buffers()]
    infinite = [name for name, values in model.named_parameters() if _has(torch.isinf, values)]
    return infinite + [name for name, values in named if _has(torch.isnan, values)]


def _has(kind: "Callable[[Tensor], Tensor]", values: "Tensor") -> bool:
    """Whether a value is of this kind; numbers of one byte have no such test."""
    return values.is_floating_point() and values.element_size() > 1 and bool(kind(values).any())


def _routers_first(names: Collection[str]) -> str:
    """The name of a router's weight, if there is one."""
    ordered = sorted(names)
    return next((name for name in ordered if "gate." in name or "router" in name), ordered[0])


def _more(names: Collection[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""

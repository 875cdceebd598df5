"""Every way to balance, declared: its options, their defaults and ranges, and what it needs.

A declaration says all that a config must know of a method, without torch; `target` names the class
that does it (see `balance/method.py`). A method of one's own declares itself with `register`, in a
module that an entry point of the group `moebench.methods` or `--plugin` names.
"""

import hashlib
import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from moebench.errors import ConfigError

LOSS = "loss"  # the name where no method acts beside the losses
GROUP = "moebench.methods"  # of entry points


@dataclass(frozen=True)
class Option:
    """A number that a method takes, `method.options.NAME`.

    Attributes:
        default: where nothing sets it; a text is a key of the config, whose value it then has.
        meaning: what it does, in one line.
        unit, low, high, above, below: as those of a config's knobs.
        whole: whether it must be a whole number.
        divides: a key of the config that it must divide.
        source: where the default comes from.
    """

    default: float | str
    meaning: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    whole: bool = False
    divides: str | None = None
    source: str = ""


def flag(meaning: str, source: str = "") -> Option:
    """An option that is on (1) or off (0)."""
    return Option(0, meaning, low=0, high=1, whole=True, source=source)


def weight(default: float, meaning: str = "of the penalty in the objective", source: str = ""):
    """The option of a penalty that scales it."""
    return Option(default, meaning, low=0, source=source)


@dataclass(frozen=True)
class Declaration:
    """What a config knows of a method.

    Attributes:
        name: `method.name`.
        meaning: what it does, in one line, with its source.
        target: `module:Class`, or the class itself.
        options: by name.
        stackable: whether arms with it can be stacked (`torch.func.vmap` over the forward): no
            values leave the device, no shapes depend on them.
        offsets: whether it moves the scores that experts are selected by (a bias), which needs a
            router that selects by scores.
        assigns: whether it selects experts itself in logical groups, in place of top-k.
        gates: the `router.gate`s it is for; empty: all.
        plugin: `module@hash` of a method that is not shipped.
    """

    name: str
    meaning: str
    target: str | type
    options: Mapping[str, Option] = field(default_factory=dict)
    stackable: bool = True
    offsets: bool = False
    assigns: bool = False
    gates: tuple[str, ...] = ()
    plugin: str | None = None

    def load(self) -> type:
        """The class that does it."""
        if not isinstance(self.target, str):
            return self.target
        module, _, name = self.target.partition(":")
        return getattr(importlib.import_module(module), name)


SHIPPED = (
    Declaration(
        "bias",
        "select by scores plus a bias that follows the load, step by step (arXiv 2408.15664)",
        "moebench.balance.bias:Bias",
        {
            "rate": Option(
                1e-3, "u: by how much the bias moves in a step", above=0, source="arXiv 2408.15664"
            ),
            "balance_bsz": Option(
                "global_bsz",
                "sequences in a group: the step is the mean over groups of that of each",
                unit="sequences",
                low=1,
                whole=True,
                divides="global_bsz",
            ),
            "proportional": flag("move by u * e_i in place of u * sign(e_i)"),
            "multiplicative": flag("multiply scores by the bias, which begins at 1"),
            "centred": flag("take the mean over experts from each move", source="torchtitan"),
        },
        offsets=True,
    ),
    Declaration(
        "quantile",
        "select by scores plus the bias that would have evened the last step (Megatron-LM)",
        "moebench.balance.quantile:Quantile",
        {"decay": Option(0, "of a moving average of the bias", low=0, below=1, source="0")},
        offsets=True,
    ),
    Declaration(
        "expert_choice",
        "each expert takes the tokens it scores highest, in training (arXiv 2202.09368)",
        "moebench.balance.assignment:ExpertChoice",
        {
            "capacity_factor": Option(
                1, "tokens an expert takes, as a multiple of its even share", above=0
            )
        },
        assigns=True,
    ),
    Declaration(
        "base",
        "the even assignment of the largest total score, in training (arXiv 2103.16716)",
        "moebench.balance.assignment:Base",
        stackable=False,
        assigns=True,
    ),
    Declaration(
        "sinkhorn",
        "top-k of scores evened out within a group, in training (arXiv 2202.01169)",
        "moebench.balance.assignment:Sinkhorn",
        {
            "tolerance": Option(
                1e-4,
                "when evening-out is done: no dual moves by more",
                above=0,
                source="Megatron-LM",
            ),
            "max_iterations": Option(100, "after which it is done anyway", low=1, whole=True),
        },
        stackable=False,
        assigns=True,
    ),
    Declaration(
        "load_error",
        "the load's error in the gradient of every token's logits (load-error injection)",
        "moebench.balance.penalized:LoadErrorInjection",
        {
            "weight": weight(1e-5, "lambda: of what is injected"),
            "tau": Option(1, "the largest error that is injected", above=0),
        },
    ),
    Declaration(
        "simbal",
        "routers with orthonormal rows (arXiv 2506.14038)",
        "moebench.balance.penalized:SimBal",
        {"weight": weight(0.01)},
    ),
    Declaration(
        "orthogonality",
        "routers whose rows point apart (ERNIE 4.5)",
        "moebench.balance.penalized:RouterOrthogonality",
        {"weight": weight(0.01, source="ERNIE 4.5's code")},
    ),
    Declaration(
        "specialize",
        "experts' outputs kept apart and scores that vary (arXiv 2505.22323)",
        "moebench.balance.penalized:Specialize",
        {
            "orthogonality": weight(1e-3, "beta: of the overlap of a token's experts"),
            "variance": weight(1e-3, "gamma: of the scores' variance"),
        },
    ),
    Declaration(
        "remoe",
        "an L1 penalty of ReLU gates whose weight keeps top_k of them active (arXiv 2412.14711)",
        "moebench.balance.penalized:ReMoE",
        {
            "start": weight(1e-8, "lambda of the first step", source="thu-ml/ReMoE"),
            "factor": Option(
                1.2, "by which lambda grows or falls in a step", low=1, source="thu-ml/ReMoE"
            ),
            "top_k": Option("model.top_k", "active experts a token to aim for", low=1, whole=True),
        },
        gates=("relu",),
    ),
    Declaration(
        "snippet",
        "the loss of a snippet that circulates in web articles, made to run",
        "moebench.balance.snippet:Snippet",
        {
            "weight": weight(0.01, "of its loss"),
            "every": Option(128, "steps from one loss to the next", "steps", low=1, whole=True),
        },
    ),
)

_known: dict[str, Declaration] = {each.name: each for each in SHIPPED}
Kind = TypeVar("Kind", bound=type)


def declared(name: str) -> Declaration:
    """The declaration of a method. Raises ConfigError for a name that nothing declared."""
    if name not in _known:
        _load_entry_point(name)
    if name not in _known:
        raise ConfigError(
            f"method.name={name}: no such method; there are {', '.join(names())}, and those of a "
            "module that --plugin names"
        )
    return _known[name]


def names() -> list[str]:
    """The names that `method.name` may have, `loss` first."""
    found = {each.name for each in entry_points(group=GROUP)}
    return [LOSS, *sorted(found | _known.keys())]


def shipped() -> tuple[Declaration, ...]:
    """The methods that moebench ships, in the order in which docs show them."""
    return SHIPPED


def register(
    name: str, meaning: str, options: Mapping[str, Option] | None = None, **more: Any
) -> Callable[[Kind], Kind]:
    """Declare a class as the method `name`; `more` are fields of `Declaration`.

    Raises ConfigError for a name that another method has.
    """

    def declare(target: Kind) -> Kind:
        before = _known.get(name)
        if name == LOSS or (before and before.plugin != _loading):
            raise ConfigError(f"{target.__module__}: the method {name} is there already; rename it")
        _known[name] = Declaration(
            name, meaning, target, options or {}, plugin=_loading or target.__module__, **more
        )
        return target

    return declare


_loading: str | None = None  # `module@hash` while a plugin is imported
_plugins: list[str] = []  # as they were named


def plugins() -> list[str]:
    """What `load_plugin` was given, for processes that this one starts."""
    return list(_plugins)


def load_plugin(module: str) -> None:
    """Import a module of one's own, whose methods then can be chosen by name.

    Args:
        module: a dotted name, which may lie in the working directory, or the path of a .py file.

    Raises ConfigError where there is no such module, where it raises, and where it declares none.
    """
    said = f"--plugin {module}"
    loaded = _import(_find(module, said), said)
    if not any(each.plugin == loaded for each in _known.values()):
        raise ConfigError(f"{said}: declares no method; put @register(...) on its class")
    _plugins.append(str(Path(module).resolve()) if module.endswith(".py") else module)


def _find(module: str, said: str) -> importlib.machinery.ModuleSpec:
    path = Path(module)
    try:
        if module.endswith(".py"):
            spec = importlib.util.spec_from_file_location(path.stem, path)
            spec = spec if path.is_file() else None
        else:
            here = str(Path.cwd())
            if here not in sys.path:
                sys.path.append(here)  # last, so that it shadows nothing
            spec = importlib.util.find_spec(module)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{said}: cannot be found ({error}); name a module or a file") from None
    if spec is None or spec.origin is None or spec.loader is None:
        raise ConfigError(f"{said}: there is no such module; name a module or a .py file")
    return spec


def _import(spec: importlib.machinery.ModuleSpec, said: str) -> str:
    """Import a module; returns its name and the hash of its text."""
    global _loading
    assert spec.origin is not None
    assert spec.loader is not None
    digest = hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()[:10]
    identity = f"{spec.name}@{digest}"
    if any(each.plugin == identity for each in _known.values()):
        return identity  # is loaded already
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made  # as an import does, for dataclasses and pickles
    _loading = identity
    try:
        spec.loader.exec_module(made)
    except ConfigError:
        del sys.modules[spec.name]
        raise
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{said}: raises {why} when it is imported; mend it") from None
    finally:
        _loading = None
    return identity


def _load_entry_point(name: str) -> None:
    for each in entry_points(group=GROUP, name=name):
        said = f"method.name={name}: its entry point {each.value}"
        _import(_find(each.module, said), said)

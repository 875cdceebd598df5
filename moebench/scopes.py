"""Every scope, declared: what its groups are, how large they may be, and what it equals.

A declaration holds all that a config must know of a scope, without torch; `target` is the class
that does the work (see `balance/scope.py`). `register` declares a scope of your own, in a module
that `--plugin` or an entry point of the group `moebench.scopes` names.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moebench import registry
from moebench.errors import ConfigError
from moebench.registry import Registry

NONE = "none"  # no balance loss
GLOBAL = "global"  # consecutive groups of any size

SIZE_KEYS = ("micro_bsz", "global_bsz")  # keys that a size may name
Size = int | str | None  # sequences, or the key that has them
Sizes = Mapping[str, Any]  # a run's `micro_bsz` and `global_bsz`, and perhaps other keys


@dataclass(frozen=True)
class Declaration(registry.Declaration):
    """What a config knows of a scope.

    Attributes:
        size: the default `balance_bsz`; None: its groups have no fixed size, so it takes none.
        fixed: whether `balance_bsz` must be `size`.
        multiple: what `balance_bsz` must be a multiple of, beside dividing `global_bsz`.
        contiguous: whether each group is a run of consecutive sequences, so that a logical pass
            can hold whole groups.
        draws: whether it draws tokens at random, micro-batch by micro-batch.
        domains: whether it needs the domain of each sequence.
        equals: sizes at which its groups are those of another scope, by the name of that scope.
        fields: what the fields of the class are set to: `micro_bsz`, `balance_bsz` or
            `num_domains`, by the name of the field.
    """

    size: Size = "global_bsz"
    fixed: bool = False
    multiple: Size = None
    contiguous: bool = False
    draws: bool = False
    domains: bool = False
    equals: Mapping[Size, str] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=lambda: {"size": "balance_bsz"})

    def __post_init__(self) -> None:
        """Raise ConfigError for a size that is neither a number nor one of SIZE_KEYS."""
        for size in (self.size, self.multiple, *self.equals):
            if isinstance(size, str) and size not in SIZE_KEYS:
                raise ConfigError(
                    f"the scope {self.name}: has the size {size}; give a number of sequences, or "
                    f"{' or '.join(SIZE_KEYS)}"
                )


SHIPPED = (
    Declaration(NONE, "No balance loss at all.", None, size=None),
    Declaration(
        "sequence",
        "Balance each sequence by itself.",
        "moebench.balance.scope:Sequence",
        size=1,
        fixed=True,
        contiguous=True,
        equals={1: GLOBAL},
        fields={},
    ),
    Declaration(
        "micro",
        "Balance each logical micro-batch.",
        "moebench.balance.scope:Micro",
        size="micro_bsz",
        fixed=True,
        contiguous=True,
        equals={"micro_bsz": GLOBAL},
        fields={"size": "micro_bsz"},
    ),
    Declaration(
        "shuffled",
        "Balance as many tokens as a micro-batch has, drawn from a pool of balance_bsz sequences.",
        "moebench.balance.scope:Shuffled",
        multiple="micro_bsz",
        contiguous=True,
        draws=True,
        equals={"micro_bsz": GLOBAL},
        fields={"size": "micro_bsz", "pool": "balance_bsz"},
    ),
    Declaration(
        GLOBAL,
        "Balance the whole step, or consecutive groups of balance_bsz sequences.",
        "moebench.balance.scope:Global",
        contiguous=True,
    ),
    Declaration(
        "domain",
        "Balance all sequences of one domain in a step.",
        "moebench.balance.scope:Domain",
        size=None,
        domains=True,
        fields={"num_domains": "num_domains"},
    ),
)

SCOPES = Registry("scope", "scope", Declaration, SHIPPED)
register = SCOPES.register
declared = SCOPES.get


def default_size(name: str, sizes: Sizes) -> int | None:
    """The `balance_bsz` of a scope where nothing sets it. Raises ConfigError if undeclared."""
    return _number(declared(name).size, sizes)


def canonical(name: str, size: int | None, sizes: Sizes) -> tuple[str, int | None]:
    """A scope and `balance_bsz` as the one scope that stands for all that have its groups.

    `micro`, and `shuffled` over a pool of one micro-batch, are `global` with groups of `micro_bsz`.
    Raises ConfigError if undeclared.
    """
    for at, other in declared(name).equals.items():
        if _number(at, sizes) == size:
            return canonical(other, size, sizes) if other != name else (name, size)
    return name, size


def title(name: str, size: int | None, sizes: Sizes) -> tuple[str, int | None]:
    """How a report calls a scope in its canonical form: a name, and a size unless the name says it.

    Returns:
        `("micro", None)` for `global` with groups of `micro_bsz`, `("global", 64)` for others.
        A name that is not declared here (a record of a plugin's scope) stays as it is.
    """
    if name in SCOPES.known and size == default_size(name, sizes):
        return name, None
    for other in reversed(SHIPPED):
        if other.fixed and (name, size) == canonical(other.name, _number(other.size, sizes), sizes):
            return other.name, None
    return name, size


def label(name: str, size: int | None, sizes: Sizes) -> str:
    """A scope in its canonical form as one word: `micro`, `global-64`, `domain`."""
    name, size = title(name, size, sizes)
    return name if size is None else f"{name}-{size}"


def _number(size: Size, sizes: Sizes) -> int | None:
    return sizes[size] if isinstance(size, str) else size

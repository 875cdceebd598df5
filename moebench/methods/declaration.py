"""What a declaration of a method holds: its options, their ranges, and what it needs.

It has all that a config must know of a method, without torch; `target` is the class that does the
work (see `balance/method.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from moebench import registry
from moebench.ranges import Range


@dataclass(frozen=True)
class Option(Range):
    """A number that a method takes, `method.options.NAME`.

    Attributes:
        default: its value where nothing sets it; a word is a key of the config that has the value.
        meaning: what it does, in one line.
        unit: of the value, "" for a pure number.
        divides: a key of the config that it must divide.
        whole_groups: whether it is the size of a group that no physical pass may split.
        needs: a key of the config that must be set where the option is not 0; "": none.
        source: where the default comes from.
    """

    default: float | str
    meaning: str
    unit: str = ""
    divides: str | None = None
    whole_groups: bool = False
    needs: str = ""
    source: str = ""


def flag(meaning: str, source: str = "") -> Option:
    """An option that is on (1) or off (0)."""
    return Option(0, meaning, low=0, high=1, whole=True, source=source)


def weight(
    default: float, meaning: str = "of the penalty in the objective", source: str = ""
) -> Option:
    """An option that scales a penalty."""
    return Option(default, meaning, low=0, source=source)


@dataclass(frozen=True)
class Declaration(registry.Declaration):
    """What a config knows of a method.

    Attributes:
        options: by name.
        stackable: whether arms with it can be stacked (`torch.func.vmap` over the forward): no
            value leaves the device, and no shape depends on a value.
        offsets: whether it moves the scores that experts are selected by (a bias), which needs a
            router that selects by scores.
        shifts: whether it shifts scores token by token (`Method.shift`).
        thresholds: whether a token goes to every expert whose moved score is above 0, in place of
            top-k.
        assigns: whether it selects experts itself in logical groups, in place of top-k.
        gates: the values of `router.gate` that it is for; empty: all.
        forms: the values of `router.form` that it is for; empty: all.
        by_logits: the option that has experts selected by the router's logits, whatever the gate;
            None: there is none.
        source: the paper or system that it is from, as docs/methods.md shows it.
        equation: its equation, as docs/methods.md shows it.
        tested: the test, and the number or loop that it is held to.
    """

    options: Mapping[str, Option] = field(default_factory=dict)
    stackable: bool = True
    offsets: bool = False
    shifts: bool = False
    thresholds: bool = False
    assigns: bool = False
    gates: tuple[str, ...] = ()
    forms: tuple[str, ...] = ()
    by_logits: str | None = None
    source: str = field(default="", kw_only=True)
    equation: str = field(default="", kw_only=True)
    tested: str = field(default="", kw_only=True)

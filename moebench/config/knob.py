"""The facts about a config key: meaning, unit, range, neutral value, and type."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, Field, field, fields, is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin

from moebench.ranges import Range

HASHED = object()  # neutral value of a key that is always part of a run's identity
NOT_HASHED = object()  # neutral value of a key that never is: it changes no result


def knob(
    default: Any = MISSING,
    meaning: str = "",
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Collection[str] | None = None,
    neutral: Any = HASHED,
    source: str = "",
) -> Any:
    """A config field with its documentation and range.

    Args:
        default: its value where nothing sets it; a list or dict is copied for each config.
        meaning: what it does, in one line.
        unit: of the value, "" for a pure number.
        low: the smallest value.
        high: the largest value.
        above: a bound that the value must exceed.
        below: a bound that the value must stay under.
        choices: the words that the value may be.
        neutral: the value at which the key does nothing, and so is no part of a run's identity;
            HASHED and NOT_HASHED stand for no value and every value.
        source: where the default comes from.
    """
    known = {
        "meaning": meaning,
        "unit": unit,
        "range": Range(low=low, high=high, above=above, below=below, choices=choices),
        "neutral": neutral,
        "source": source,
    }
    if isinstance(default, list | dict):
        kept = default
        return field(default_factory=lambda: kept.copy(), metadata=known)
    return field(default=default, metadata=known)


def knobs(config: Any, prefix: str = "") -> Iterator[tuple[str, Field, Any]]:
    """Every leaf of a config as (dotted key, field, value), in the order of the schema."""
    for leaf in fields(config):
        value = getattr(config, leaf.name)
        key = prefix + leaf.name
        if is_dataclass(value):
            yield from knobs(value, key + ".")
        else:
            yield key, leaf, value


def flat(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of nested tables as (dotted key, value)."""
    for name, value in nested.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def as_type(value: Any, kind: Any) -> Any:
    """A value as the type of a knob. A whole number may stand for a float or a word.

    Raises TypeError otherwise, with a message if a part of the value is wrong.
    """
    if isinstance(kind, UnionType):  # X | None
        return None if value is None else as_type(value, get_args(kind)[0])
    if get_origin(kind) is list and isinstance(value, list):
        return [as_type(item, *get_args(kind)) for item in value]
    if get_origin(kind) is dict and isinstance(value, dict):
        of_key, of_value = get_args(kind)
        return {as_type(k, of_key): as_type(v, of_value) for k, v in value.items()}
    if is_dataclass(kind) and isinstance(value, dict):
        return _as_table(value, kind)
    if type(value) is int and kind in (float, str):
        return kind(value)
    if type(value) is bool and kind is str:  # true is a word, too
        return str(value).lower()
    if type(value) is kind and value != "":
        return value
    raise TypeError


def _as_table(table: dict[Any, Any], kind: Any) -> Any:
    types, values = {column.name: column.type for column in fields(kind)}, {}
    for name, value in table.items():
        if name not in types:
            raise TypeError(f"has the key {name}, where there are {', '.join(types)}")
        try:
            values[name] = as_type(value, types[name])
        except TypeError:
            raise TypeError(f"{name} must be {type_words(types[name])}") from None
    return kind(**values)


def type_words(kind: Any) -> str:
    """The type of a knob in words, as an error says it."""
    if isinstance(kind, UnionType):
        return f"{type_words(get_args(kind)[0])}, or null"
    if get_origin(kind) is list and is_dataclass(inner := get_args(kind)[0]):
        return f"a list of tables, as in {inner.example}"  # pyright: ignore
    return {
        int: "a whole number, written out (1000, not 1e3)",
        float: "a number",
        bool: "true or false",
        str: "a word",
        list[str]: "a list, as in [a,b]",
        list[int]: "a list of whole numbers, as in [0,1]",
        dict[str, float]: "a table of numbers, as in {a:2,b:0.5}",
        dict[str, int]: "a table of whole numbers, as in {a:2,b:5}",
        dict[str, str]: "a table of words, as in {a:b}",
    }.get(kind, "a table of lists")

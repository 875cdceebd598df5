"""Conditions on runs and values of their keys, for `--where`, `--by` and the tables of a report."""

import json
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from moebench.config.identity import scope_of
from moebench.errors import ConfigError, nearest
from moebench.records import printable

Row = Mapping[str, Any]


def condition(text: str) -> Callable[[Row], bool]:
    """A function that says whether a run meets `key=value` or `key=value,value`.

    Args:
        text: the key is one of the config, `arm` (whose values may hold * and ?) or `seed`.

    Raises:
        ConfigError: if it is not a condition, or names no key.
    """
    key, equals, values = text.partition("=")
    if not equals:
        raise ConfigError(f"--where {printable(text)}: must be KEY=VALUE, as in seed=0,1")
    check_key(key, "--where")

    def met(row: Row) -> bool:
        actual = as_typed(value_of(row, key))
        wanted = values.split(",")
        if key == "arm":
            return any(fnmatchcase(actual, pattern) for pattern in wanted)
        return any(actual in (value, as_typed(_parsed(value))) for value in wanted)

    return met


def check_key(key: str, option: str) -> None:
    """ConfigError if no run has such a key."""
    from moebench.config.presets import KNOBS

    known = ("arm", "seed", "data", *KNOBS)
    if key not in known:
        near = nearest(key, known)
        remedy = f"did you mean {' or '.join(near)}?" if near else "see docs/keys.md"
        raise ConfigError(f"{option} {printable(key)}: there is no such key; {remedy}")


def value_of(row: Row, key: str) -> Any:
    """A run's value of a key of the config, of `arm` or of `seed`; None if it has none.

    `scope` is named as it is typed: a group of a micro-batch is `micro`, of the whole step
    `global`.
    """
    if key in ("arm", "seed"):
        return row[key]
    science = row["science"]
    if key == "scope":
        return scope_of(science)
    if key in science:
        return science[key]
    from moebench.config.knob import HASHED, NOT_HASHED
    from moebench.config.presets import KNOBS

    neutral = KNOBS[key].metadata["neutral"] if key in KNOBS else None
    return None if neutral is HASHED or neutral is NOT_HASHED else neutral


def as_typed(value: Any) -> str:
    """A value as a user types it."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _parsed(text: str) -> Any:
    """What a user typed, as the config holds it."""
    try:
        return json.loads(text)
    except ValueError:
        return text

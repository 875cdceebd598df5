"""What nested configs have in common, so that a plan holds it once.

Thousands of jobs read the whole plan.
"""

from collections.abc import Mapping, Sequence
from typing import Any

_ABSENT = object()


def in_common(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What nested configs have in common."""
    first, *others = configs
    common: dict[str, Any] = {}
    for key, value in first.items():
        values = [other.get(key, _ABSENT) for other in others]
        if isinstance(value, dict) and all(isinstance(other, dict) for other in values):
            common[key] = in_common([value, *values])
        elif all(type(other) is type(value) and other == value for other in values):
            common[key] = value
    return common


def beyond(config: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """What a nested config does not share."""
    own: dict[str, Any] = {}
    for key, value in config.items():
        if key not in shared:
            own[key] = value
        elif isinstance(value, dict) and (inner := beyond(value, shared[key])):
            own[key] = inner
    return own


def joined(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A nested config, from what it shares and what it does not."""
    merged = dict(shared)  # its tables are shared by all jobs, which change none
    for key, value in own.items():
        before = shared.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            value = joined(before, value)
        merged[key] = value
    return merged

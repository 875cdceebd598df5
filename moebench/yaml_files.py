"""YAML files that others wrote: read with a bound on size, depth and aliases."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from moebench.disk import MAX_DEPTH, read_bytes

MAX_YAML_BYTES = 2**16  # a record's config.yaml has a few thousand
YAML: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it is there


def read_yaml_text(path: Path, loader: Any = YAML) -> str:
    """The text of a YAML file that is safe to parse by a loader, since they differ in what is YAML.

    A few aliases of aliases can stand for gigabytes, and a deep nest takes minutes to parse.
    """
    try:
        text = read_bytes(path, MAX_YAML_BYTES).decode()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text") from None
    depth = 0
    for event in _events(text, loader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("has a YAML alias, which no config needs")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError("is nested too deeply")
    return text


def _events(text: str, loader: Any) -> Iterator[yaml.Event]:
    try:
        yield from yaml.parse(text, loader)
    except yaml.MarkedYAMLError as error:
        if "nesting depth" in str(error.problem):  # the library's own bound
            raise ValueError("is nested too deeply") from None
        raise


def read_yaml(path: Path) -> Any:
    """The content of a YAML file as plain values."""
    return yaml.load(read_yaml_text(path), YAML)

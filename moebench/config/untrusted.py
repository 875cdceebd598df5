"""YAML that others wrote, read so that a hostile file costs no more than a refusal.

A few aliases of aliases are gigabytes of config, a deep nest takes minutes to parse, and a pipe or
a device need not end. What is read here is a small text without any of them.
"""

from pathlib import Path
from typing import Any

import yaml

LARGEST = 2**18  # bytes; a record's config.yaml has some thousand
DEEPEST = 16  # tables and lists in one another; a config has three


def read_text(path: Path) -> str:
    """The text of a YAML file; ValueError, YAMLError or OSError if it is none that can be used."""
    with open(path, "rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"is larger than {LARGEST // 1024} KiB")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise ValueError("is no text in UTF-8") from None
    depth = 0
    for each in yaml.parse(text, yaml.SafeLoader):
        if isinstance(each, yaml.AliasEvent):
            raise ValueError("has a YAML alias, which no config needs")
        depth += isinstance(each, yaml.CollectionStartEvent)
        depth -= isinstance(each, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError("is nested too deeply")
    return text


def load(path: Path) -> Any:
    """What a YAML file says, as plain values; raises as `read_text` does."""
    return yaml.safe_load(read_text(path))

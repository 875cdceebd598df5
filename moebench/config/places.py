"""Paths of a config in absolute form, so that its record means the same text in any folder."""

import os
import re
import shlex
from dataclasses import replace

from moebench.config.overrides import quoted
from moebench.config.schema import DataConfig
from moebench.disk import expanded

PLAIN = re.compile(r"[\w./+-]+")  # needs no quotes in Hydra's grammar


def located(data: DataConfig) -> DataConfig:
    """The config with absolute paths, those of `data.sources` included."""
    words = data.tokenizer in ("bytes", "bpe")
    return replace(
        data,
        path=data.path and _absolute(data.path),
        name=data.name and _absolute_folder(data.name),
        tokenizer=data.tokenizer if words else _absolute(data.tokenizer),
        sources=list(map(_located_source, data.sources)),
    )


def _located_source(entry: str) -> str:
    words = shlex.split(entry)
    places = [_located_word(word) for word in words]
    return entry if places == words else shlex.join(places)


def _located_word(word: str) -> str:
    key, _, value = word.partition("=")
    if key not in ("path", "name"):
        return word
    place = {"path": _absolute, "name": _absolute_folder}[key](value.strip("'\""))
    return f"{key}={place if PLAIN.fullmatch(place) else quoted(place)}"


def _absolute_folder(name: str) -> str:
    """A dataset's name: that of a folder, or unchanged where there is none."""
    return _absolute(name) if expanded(name).is_dir() else name


def _absolute(path: str) -> str:
    return os.path.abspath(expanded(path))

"""What a shell offers when Tab is pressed: keys, groups, presets, values, studies and runs.

Typer brings the scripts of the shells and completes commands and options; here is what it cannot
know. It runs at every press of the key, so it imports neither Hydra nor anything of data, and where
something is wrong it offers nothing: an error in the middle of a prompt helps nobody.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import Field
from functools import wraps
from pathlib import Path
from types import UnionType
from typing import get_args

import typer
import yaml

from moebench.config.presets import DEFAULT_STUDY, KNOBS, STUDY, STUDY_KNOBS, Presets, opening
from moebench.config.schema import range_words
from moebench.config.untrusted import load
from moebench.errors import MoebenchError

Choice = tuple[str, str]  # a word, and what it means
Completion = Callable[[typer.Context, str], list[Choice]]

# The script of a shell evaluates what it is offered: a name on disk has to be harmless, a meaning
# is made so, and is cut before Typer breaks it into lines, of which each would be a choice.
HARMLESS = re.compile(r"[\w./+@,=-]+")
INSTEAD = str.maketrans({"[": "(", "]": ")", "\\": "/", "`": None, '"': None, "$": None})
WIDTH = 72


def _quietly(complete: Callable[[typer.Context, str], Iterator[Choice]]) -> Completion:
    @wraps(complete)
    def completed(ctx: typer.Context, incomplete: str) -> list[Choice]:
        try:
            return [(word, _short(meaning)) for word, meaning in complete(ctx, incomplete)]
        except (MoebenchError, OSError, ValueError, yaml.YAMLError):
            return []

    return completed


def _short(meaning: str) -> str:
    plain = "".join(filter(str.isprintable, " ".join(meaning.split()).translate(INSTEAD)))
    return plain if len(plain) <= WIDTH else f"{plain[: WIDTH - 1]}…"


@_quietly
def overrides(ctx: typer.Context, incomplete: str) -> Iterator[Choice]:
    """`key=value` and `group=preset`, and of a sweep `study=`, `study.*` and lists of values."""
    typed: Sequence[str] = ctx.params.get("overrides") or ()
    beginning = ""
    if "COMP_WORDS" in os.environ:  # bash
        *typed, beginning = _joined(typed)
    word = beginning + incomplete
    for choice, meaning in _Words(ctx, typed).matching(word):
        if choice.startswith(word):
            yield choice.removeprefix(beginning), meaning


def _joined(words: Sequence[str]) -> list[str]:
    """Words as bash splits them, which makes three of `key=value`, put together again.

    The last is the beginning of the word to complete: `key=`, or empty.
    """
    joined: list[str] = []
    for word in words:
        if joined and (word == "=" or joined[-1].endswith("=")):
            joined[-1] += word
        else:
            joined.append(word)
    if joined and "=" not in joined[-1]:
        joined[-1] += "="  # which Typer takes away where nothing follows it
    if not (joined and joined[-1].endswith("=")):
        joined.append("")
    return joined


class _Words:
    """The overrides that a command takes."""

    def __init__(self, ctx: typer.Context, typed: Sequence[str]) -> None:
        self.presets = Presets(ctx.params.get("config_dir"))
        self.sweeps = ctx.command.name == "sweep"
        self.typed = dict(each.split("=", 1) for each in typed if "=" in each)
        self.groups = (*self.presets.groups, *([STUDY] if self.sweeps else []))
        self.knobs = KNOBS | (STUDY_KNOBS if self.sweeps else {})

    def matching(self, word: str) -> Iterator[Choice]:
        key, equals, value = word.partition("=")
        if equals:
            yield from self._values(key, value)
            return
        names = [
            name for name in dict.fromkeys((*self.groups, *self.knobs)) if name.startswith(key)
        ]
        for name in names:
            yield f"{name}=", self._meaning(name)
        if len(names) == 1:
            # Its values too: a choice that stands alone would get a blank behind its =.
            yield from self._values(names[0], "")

    def _values(self, key: str, value: str) -> Iterator[Choice]:
        before, comma, _ = value.rpartition(",") if self.sweeps else ("", "", "")
        for each, meaning in self._each(key):
            if each not in before.split(","):
                yield f"{key}={before}{comma}{each}", meaning

    def _each(self, key: str) -> Iterator[Choice]:
        if key in self.groups:
            for preset in filter(HARMLESS.fullmatch, self.presets.choices(key)):
                yield preset, opening(self.presets.path(key, preset))
        elif key == "study.size":
            study = self.typed.get(STUDY, DEFAULT_STUDY)
            if study in self.presets.choices(STUDY):
                sizes = load(self.presets.path(STUDY, study)).get("sizes", {})
                yield from ((size, " ".join(overrides)) for size, overrides in sizes.items())
        elif key == "data.path":
            for folder in filter(Path.is_dir, Path().iterdir()):
                if HARMLESS.fullmatch(folder.name) and not folder.name.startswith("."):
                    yield folder.name, "a folder here"
        elif key in self.knobs:
            known = self.knobs[key]
            for each in _usual(known):
                yield each, _facts(known)

    def _meaning(self, name: str) -> str:
        if name in self.groups:
            return f"a preset: {', '.join(self.presets.choices(name)) or 'none yet'}"
        return _facts(self.knobs[name])


def _facts(known: Field) -> str:
    return "; ".join(filter(None, (known.metadata["meaning"], range_words(known.metadata))))


def _usual(known: Field) -> Iterator[str]:
    """The values of a knob: all where they are few, else its default."""
    choices = known.metadata["choices"]
    if known.type is bool:
        yield from ("true", "false")
    elif choices:
        yield from choices
    elif isinstance(known.default, int | float | str) and HARMLESS.fullmatch(str(known.default)):
        yield str(known.default)
    if isinstance(known.type, UnionType) and type(None) in get_args(known.type):
        yield "null"


@_quietly
def runs(ctx: typer.Context, incomplete: str) -> Iterator[Choice]:
    """The runs in --runs-dir, or in the folder that is being typed."""
    folder, slash, _ = incomplete.rpartition("/")
    root = Path(folder or "/") if slash else ctx.params["runs_dir"]
    for path in sorted(root.glob("*/config.yaml")):
        name = str(path.parent)
        if HARMLESS.fullmatch(name) and not path.parent.name.startswith("."):
            yield name, ""


@_quietly
def studies(ctx: typer.Context, incomplete: str) -> Iterator[Choice]:
    """The studies that were planned in --runs-dir, by name and by that of their directories."""
    plans = sorted(ctx.params["runs_dir"].glob(f"studies/{incomplete}*/plan.json"))
    slugs = [path.parent.name for path in plans]
    names = [slug.rpartition("-")[0] for slug in slugs]
    yield from ((word, "") for word in dict.fromkeys(names + slugs) if HARMLESS.fullmatch(word))


def formats() -> list[str]:
    """Of a report, whose own list cannot be had without pandas."""
    return ["table", "md", "csv", "json", "latex", "parquet"]

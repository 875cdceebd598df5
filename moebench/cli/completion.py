"""Shell completion of keys, groups, presets, values, studies and runs.

Typer provides the shell scripts and completes commands and options. This module runs whenever Tab
is pressed, so it imports neither Hydra nor anything from `data`. Where something is wrong, it
offers nothing: an error in the middle of a prompt helps nobody.
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

from moebench.cli.options import load_plugins
from moebench.config.presets import DEFAULT_STUDY, KNOBS, LAUNCHER, STUDY, STUDY_KNOBS, Presets
from moebench.errors import MoebenchError
from moebench.yaml_files import read_yaml

Choice = tuple[str, str]  # a word, and what it means
Completion = Callable[[typer.Context, str], list[Choice]]

# Shell scripts evaluate what they are offered. So names on disk are offered only if they are
# harmless, and special characters in meanings are replaced. A meaning is also shortened, because
# Typer would break it into lines and the shell would take each line for a choice.
HARMLESS = re.compile(r"[\w./+@,=-]+")
REPLACEMENTS = str.maketrans({"[": "(", "]": ")", "\\": "/", "`": None, '"': None, "$": None})
WIDTH = 72


def _without_errors(complete: Callable[[typer.Context, str], Iterator[Choice]]) -> Completion:
    """Offer nothing instead of raising an error."""

    @wraps(complete)
    def completed(ctx: typer.Context, incomplete: str) -> list[Choice]:
        try:
            return [(word, _harmless(meaning)) for word, meaning in complete(ctx, incomplete)]
        except (MoebenchError, OSError, ValueError, yaml.YAMLError):
            return []

    return completed


def _harmless(meaning: str) -> str:
    """A meaning as one short line that a shell can evaluate."""
    plain = "".join(filter(str.isprintable, " ".join(meaning.split()).translate(REPLACEMENTS)))
    return plain if len(plain) <= WIDTH else f"{plain[: WIDTH - 1]}…"


@_without_errors
def overrides(ctx: typer.Context, incomplete: str) -> Iterator[Choice]:
    """`key=value` and `group=preset`; for a sweep also `study=`, `study.*` and lists of values."""
    typed: Sequence[str] = ctx.params.get("overrides") or ()
    beginning = ""
    if "COMP_WORDS" in os.environ:  # bash
        *typed, beginning = _joined(typed)
    word = beginning + incomplete
    for choice, meaning in _Words(ctx, typed).matching(word):
        if choice.startswith(word):
            yield choice.removeprefix(beginning), meaning


def _joined(words: Sequence[str]) -> list[str]:
    """Join the words again that bash split at the `=` of `key=value`.

    The last word of the result is the start of the word to complete: `key=`, or empty.
    """
    joined: list[str] = []
    for word in words:
        if joined and (word == "=" or joined[-1].endswith("=")):
            joined[-1] += word
        else:
            joined.append(word)
    if joined and "=" not in joined[-1]:
        joined[-1] += "="  # Typer removes a = that nothing follows
    if not (joined and joined[-1].endswith("=")):
        joined.append("")
    return joined


class _Words:
    """The overrides that a command takes."""

    def __init__(self, ctx: typer.Context, typed: Sequence[str]) -> None:
        load_plugins(ctx.params.get("plugin"))
        self.presets = Presets(ctx.params.get("config_dir"))
        self.sweeps = ctx.command.name == "sweep"
        self.typed = dict(word.split("=", 1) for word in typed if "=" in word)
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
            # Also offer the values: bash adds a space after `key=` if it is the only choice.
            yield from self._values(names[0], "")

    def _values(self, key: str, value: str) -> Iterator[Choice]:
        before, comma, _ = value.rpartition(",") if self.sweeps else ("", "", "")
        for choice, meaning in self._choices(key):
            if choice not in before.split(","):
                yield f"{key}={before}{comma}{choice}", meaning

    def _choices(self, key: str) -> Iterator[Choice]:
        if key in self.groups:
            for preset in filter(HARMLESS.fullmatch, self.presets.choices(key)):
                yield preset, self.presets.meaning(key, preset)
        elif key == "study.size":
            study = self.typed.get(STUDY, DEFAULT_STUDY)
            if path := self.presets.path(STUDY, study):
                sizes = read_yaml(path).get("sizes", {})
                yield from ((size, " ".join(overrides)) for size, overrides in sizes.items())
        elif key == "data.path":
            for folder in filter(Path.is_dir, Path().iterdir()):
                if HARMLESS.fullmatch(folder.name) and not folder.name.startswith("."):
                    yield folder.name, "directory"
        elif key in self.knobs:
            knob = self.knobs[key]
            for value in _usual_values(knob):
                yield value, _facts(knob)

    def _meaning(self, name: str) -> str:
        if name in self.groups:
            return f"a preset: {', '.join(self.presets.choices(name)) or 'none yet'}"
        return _facts(self.knobs[name])


def _facts(knob: Field) -> str:
    return "; ".join(filter(None, (knob.metadata["meaning"], knob.metadata["range"].words)))


def _usual_values(knob: Field) -> Iterator[str]:
    """All values of a knob if it has a list of choices, otherwise its default."""
    choices = knob.metadata["range"].choices
    if knob.type is bool:
        yield from ("true", "false")
    elif choices:
        yield from choices
    elif isinstance(knob.default, int | float | str) and HARMLESS.fullmatch(str(knob.default)):
        yield str(knob.default)
    if isinstance(knob.type, UnionType) and type(None) in get_args(knob.type):
        yield "null"


@_without_errors
def runs(ctx: typer.Context, incomplete: str) -> Iterator[Choice]:
    """The runs in --runs-dir, or in the directory that is being typed."""
    folder, slash, _ = incomplete.rpartition("/")
    root = Path(folder or "/") if slash else ctx.params["runs_dir"]
    for path in sorted(root.glob("*/config.yaml")):
        name = str(path.parent)
        if HARMLESS.fullmatch(name) and not path.parent.name.startswith("."):
            yield name, ""


@_without_errors
def studies(ctx: typer.Context, incomplete: str) -> Iterator[Choice]:
    """The planned studies in --runs-dir: their names, and the names of their directories."""
    plans = sorted(ctx.params["runs_dir"].glob(f"studies/{incomplete}*/plan.json"))
    slugs = [path.parent.name for path in plans]
    names = [slug.rpartition("-")[0] for slug in slugs]
    yield from ((word, "") for word in dict.fromkeys(names + slugs) if HARMLESS.fullmatch(word))


@_without_errors
def runs_and_studies(ctx: typer.Context, incomplete: str) -> Iterator[Choice]:
    yield from runs(ctx, incomplete)
    yield from studies(ctx, incomplete)


@_without_errors
def launchers(ctx: typer.Context, incomplete: str) -> Iterator[Choice]:
    """The presets that say where a sweep trains its runs."""
    presets = Presets(ctx.params.get("config_dir"))
    for preset in filter(HARMLESS.fullmatch, presets.choices(LAUNCHER)):
        yield preset, presets.meaning(LAUNCHER, preset)


@_without_errors
def formats(ctx: typer.Context, incomplete: str) -> Iterator[Choice]:
    """The formats of a report, named here because importing the report imports pandas."""
    yield from ((name, "") for name in ("table", "md", "csv", "json", "latex", "parquet"))

"""The page of all keys and presets, docs/keys.md, made from what defines them.

`python -m moebench.config.keys_page > docs/keys.md` makes it again. Each fact on it is read from
where it is kept: the knobs of `schema.py`, the presets in `conf/` and their opening comments.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import Field, fields, is_dataclass
from types import UnionType
from typing import Any

from moebench import scopes
from moebench.config.compose import Composer
from moebench.config.knob import knobs, type_words
from moebench.config.presets import (
    LAUNCHER,
    SCOPE,
    STUDY,
    STUDY_KNOBS,
    default_presets,
    opening,
    shipped_conf,
)
from moebench.config.schema import ExperimentConfig, StudyConfig

COMMAND = "python -m moebench.config.keys_page > docs/keys.md"
COLUMNS = ("key", "meaning", "unit", "range", "default", "source")
TOP = ""  # section of the keys without a group; that of the keys of a study is STUDY

LAUNCHERS = """\
Where `moebench sweep` trains runs; no part of a config. [Clusters](clusters.md) has the options.
"""

INTRODUCTION = f"""\
# Keys

All keys and presets, to be set as `key=value` and `group=preset`. The text beside a preset is the
first sentence of its file. This page is generated from the schema and the presets by
`{COMMAND}`.
"""


def keys_page() -> str:
    """The page in Markdown: a section a group, the study and the launchers last."""
    default = default_presets(shipped_conf())
    tables: dict[str, list[str]] = {}
    for key, field, value in _keys():
        group = key.partition(".")[0] if "." in key else TOP
        tables.setdefault(group, []).append(_row(key, field, value))
    about = {
        table.name: table.type for table in fields(ExperimentConfig) if is_dataclass(table.type)
    }
    about[STUDY] = StudyConfig
    parts = [INTRODUCTION]
    for group in dict.fromkeys((TOP, *default, *tables)):
        presets = [_preset(group, *preset, default.get(group)) for preset in _presets(group)]
        if group not in tables and not presets:
            continue
        parts.append(f"## {group or 'Without a group'}\n")
        if caption := _caption(about.get(group)):
            parts.append(f"{caption}\n")
        if group in tables:
            parts.append("".join([_line(COLUMNS), _line(["---"] * len(COLUMNS)), *tables[group]]))
        if presets:
            parts.append("".join(presets))
    launchers = (f"- `--launcher {name}`: {meaning}\n" for name, meaning in _presets(LAUNCHER))
    parts += [f"## {LAUNCHER}\n", LAUNCHERS, "".join(launchers)]
    return "\n".join(parts)


def _keys() -> Iterator[tuple[str, Field, Any]]:
    """Every key, with its field and its value where nothing sets it."""
    shipped = {key: value for key, _, value in knobs(Composer().compose())}
    for key, field, value in knobs(ExperimentConfig()):
        # null stays null, although a complete config has a value there, computed from other keys
        yield key, field, None if value is None else shipped[key]
    for key, field, value in knobs(StudyConfig(), f"{STUDY}."):
        if key in STUDY_KNOBS:
            yield key, field, value


def _row(key: str, field: Field, value: Any) -> str:
    known, kind = field.metadata, field.type
    allowed = known["range"].words
    if not allowed:
        allowed = type_words(kind)
    elif isinstance(kind, UnionType):
        allowed += ", or null"
    written = value if isinstance(value, str) and value else json.dumps(value)
    return _line(
        [f"`{key}`", known["meaning"], known["unit"], allowed, f"`{written}`", known["source"]]
    )


def _line(cells: Sequence[str]) -> str:
    escaped = (cell.replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(escaped)} |\n"


def _caption(section: Any) -> str:
    """The first line of a class's docstring; "" for no class, or if `dataclass` wrote it."""
    text = "" if section is None else getattr(section, "__doc__", None) or ""
    made = f"{getattr(section, '__name__', '')}("
    return "" if text.startswith(made) else text.partition("\n")[0]


def _presets(group: str) -> list[tuple[str, str]]:
    """The presets of a group, sorted, with what each is."""
    if group == SCOPE:
        return sorted((scope.name, scope.meaning) for scope in scopes.SHIPPED)
    files = sorted((shipped_conf() / group).glob("*.yaml")) if group else []
    return [(path.stem, opening(path)) for path in files]


def _preset(group: str, name: str, meaning: str, default: str | None) -> str:
    mark = " (default)" if name == default else ""
    return f"- `{group}={name}`{mark}: {meaning}\n"


if __name__ == "__main__":
    print(keys_page(), end="")

"""Overrides as typed on the command line: parsed by Hydra, and checked one by one.

Every error names the override, what is wrong with it, and a remedy.
"""

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field
from functools import partial
from itertools import chain, islice, product
from pathlib import Path
from typing import Any, cast

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from moebench.config.knob import as_type, type_words
from moebench.config.presets import KNOBS, NO_EXPERIMENT, STUDY, Presets
from moebench.config.zipped import is_zipped, rows_of
from moebench.disk import reason
from moebench.errors import ConfigError, apply_to_all, remedy

MOST_RUNS = 10_000  # of a sweep; more are a typing error, as in seed=range(0,1e9)
LONGEST = 20_000  # characters of an override; Hydra parses some thousand a second
DEEPEST = 16  # brackets in brackets


class OverrideParser(Presets):
    """Parses overrides, and checks them against the keys and the presets."""

    def __init__(self, overlay: Path | None = None) -> None:
        super().__init__(overlay)
        self._parser = OverridesParser.create()
        self._parsed: dict[str, Override] = {}

    def get_group_options(self, group: str, results_filter: Any = None) -> list[str]:
        """`choices`, as Hydra's `glob()` asks for them."""
        return self.choices(group)

    def expand(self, overrides: Sequence[str]) -> list[tuple[str, ...]]:
        """The jobs of overrides in Hydra's sweep grammar: a tuple of overrides for each job.

        Keys may also be zipped, see `zipped.py`.

        Raises ConfigError for an invalid override, and for a sweep of no jobs or of too many.
        """
        zipped = {word: rows_of(word) for word in overrides if is_zipped(word)}
        firsts = [word for rows in zipped.values() for word in rows[0]]
        self.checked([*(word for word in overrides if word not in zipped), *firsts])
        choices = [
            self._zip(word, zipped[word]) if word in zipped else self._axis(word)
            for word in overrides
        ]
        if math.prod(map(len, choices)) > MOST_RUNS:
            raise ConfigError(
                f"{' '.join(overrides)}: is more than {MOST_RUNS} runs; sweep over fewer values"
            )
        return [tuple(chain(*words)) for words in product(*choices)]

    def _axis(self, word: str) -> list[tuple[str, ...]]:
        """The values of a checked override, each as an override; one unless it is a sweep."""
        override = self._parse(word)
        if not override.is_sweep_override():
            return [(word,)]
        return [(f"{override.key_or_group}={value}",) for value in _sweep(override)]

    def _zip(self, word: str, rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
        """The rows of a zipped override, checked."""
        for row in rows:
            for override in self.checked(row):
                if override.is_sweep_override():
                    raise ConfigError(
                        f"{word}: {override.input_line} is a sweep within a zip; list its values"
                    )
        return rows

    def is_sweep(self, override: str) -> bool:
        """Whether an override is written as a sweep, whatever its number of values."""
        return is_zipped(override) or self._parse(override).is_sweep_override()

    def settings(self, overrides: Iterable[str]) -> dict[str, Any]:
        """What overrides without sweeps set: a word for a group, a typed value for a key."""
        return {
            override.key_or_group: word_of(override)
            if self.is_group(override)
            else value_of(override, KNOBS)
            for override in self.checked(overrides)
        }

    def typed(self, overrides: Iterable[str]) -> list[tuple[str, Any]]:
        """(key, value) of overrides of keys, checked one by one."""
        return [
            (override.key_or_group, value_of(override, KNOBS))
            for override in self.checked(overrides)
        ]

    def checked(
        self, overrides: Iterable[str], known: Mapping[str, Field] = KNOBS
    ) -> list[Override]:
        """Parse overrides and check them one by one; ConfigError for those that are invalid.

        Args:
            known: the valid keys; with those of a run, its groups are valid too.
        """

        def check(text: str) -> Override:
            _check_utf8(text)
            if is_zipped(text):
                raise ConfigError(
                    f"{text}: is a sweep, where one value is needed; set each key by itself"
                )
            override = self._parse(text)
            key = override.key_or_group
            _refuse_odd(override)
            if known is KNOBS and self.is_group(override):
                picks = _sweep(override) if override.is_sweep_override() else [word_of(override)]
                if len({*picks}) > 2 * len(self.choices(key)):
                    raise ConfigError(
                        f"{override.input_line}: names more than there are; list some of "
                        f"{', '.join(self.choices(key))}"
                    )
                apply_to_all(partial(self._check_pick, key), picks)
            elif key not in known and not _is_entry(key, known):
                if known is KNOBS and key.split(".")[0] == STUDY:
                    raise ConfigError(f"{override.input_line}: is for moebench sweep; leave it out")
                words = [*(self.groups if known is KNOBS else ()), *known]
                raise ConfigError(unknown(override.input_line or key, "key", key, words))
            return override

        seen: dict[str, Override] = {}
        for override in apply_to_all(check, overrides):
            key = override.key_or_group
            if key in seen:
                raise ConfigError(
                    f"{key}: is set twice ({seen[key].input_line} and {override.input_line}); "
                    "keep one"
                )
            seen[key] = override
        return list(seen.values())

    def _check_pick(self, group: str, preset: str) -> None:
        subject = f"{group}={preset}"
        if preset not in self.choices(group) and subject != NO_EXPERIMENT:
            line = unknown(subject, group, preset, self.choices(group))
            if group == "scope" and not line.endswith("?"):
                line += "; a scope of a plugin needs --plugin FILE"
            raise ConfigError(line)

    def is_group(self, override: Override) -> bool:
        """Whether an override chooses a preset, as `model=small` does."""
        return override.key_or_group in self.groups

    def _parse(self, text: str) -> Override:
        if text not in self._parsed:
            if "=" not in text and not text.startswith("~"):
                raise ConfigError(f"{text}: is neither an option nor an override; write key=value")
            _check_size(text)
            try:
                parsed = self._parser.parse_override(text)
            except (HydraException, ValueError, RecursionError) as error:
                raise ConfigError(
                    f"{text}: does not parse ({reason(error)}); {how_to_quote(text)}"
                ) from None
            parsed.config_loader = cast(Any, self)  # for glob(), see get_group_options
            self._parsed[text] = parsed
        return self._parsed[text]


def _check_size(text: str) -> None:
    """Refuse what Hydra's parser would work on for minutes."""
    if len(text) > LONGEST:
        raise ConfigError(f"{text}: has {len(text)} characters; write at most {LONGEST}")
    depth = deepest = 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        deepest = max(deepest, depth)
    if deepest > DEEPEST:
        raise ConfigError(f"{text}: is nested {deepest} deep; {how_to_quote(text)}")


def _check_utf8(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{text}: is not UTF-8; rename what it names") from None


def _refuse_odd(override: Override) -> None:
    """Refuse the parts of Hydra's grammar that moebench does not support."""
    text = override.input_line or ""
    if override.is_delete():
        raise ConfigError(f"{text}: no key can be taken away; set it to another value")
    if override.is_add() or override.is_force_add():
        raise ConfigError(f"{text}: no key can be added; drop the + if the key exists")
    if override.package is not None:
        raise ConfigError(f"{text}: a preset stays in its group; drop @{override.package}")
    if "${" in text:
        raise ConfigError(
            f"{text}: interpolations are not taken from the command line; type the value"
        )


def _sweep(override: Override) -> list[str]:
    """The values of a sweep, as text that parses to them again."""
    try:
        if any(isinstance(each, RangeSweep) for each in getattr(override.value(), "list", ())):
            raise ValueError("a range stands alone")
        values = list(islice(override.sweep_string_iterator(), MOST_RUNS + 1))
    except (HydraException, ValueError) as error:
        raise ConfigError(
            f"{override.input_line}: is not a sweep that can run ({cause(error)}); list the values"
        ) from None
    if not values:
        raise ConfigError(f"{override.input_line}: the sweep is empty; give at least one value")
    return values


def value_of(override: Override, known: Mapping[str, Field]) -> Any:
    """The value of an override, in the type of its key; ConfigError for a wrong type."""
    return typed_value(override.input_line or "", override.key_or_group, override.value(), known)


def typed_value(subject: str, key: str, value: Any, known: Mapping[str, Field]) -> Any:
    """Convert a value to the type of its key; ConfigError for an unknown key or a wrong type."""
    kind: Any = float if _is_entry(key, known) else None
    if kind is None and key not in known:
        raise ConfigError(unknown(subject, "key", key, list(known)))
    kind = kind or known[key].type
    try:
        return as_type(value, kind)
    except OverflowError:
        why = ""
    except TypeError as error:
        why = str(error)
    raise ConfigError(f"{subject}: {why or 'must be ' + type_words(kind)}")


def _is_entry(key: str, known: Mapping[str, Field]) -> bool:
    """Whether a key is an entry of a table of numbers, as `method.options.rate` is."""
    table, _, name = key.rpartition(".")
    return bool(name) and table in known and known[table].type == dict[str, float]


def word_of(override: Override) -> str:
    """The value of an override as a word, such as the name of a preset."""
    value = override.value()
    return "null" if value is None else str(value)


def quoted(text: str) -> str:
    """A text as one word of Hydra's grammar."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def how_to_quote(text: str | None) -> str:
    """A remedy for a value that Hydra's grammar takes for something else."""
    key, _, value = (text or "").partition("=")
    return "quote the value, as in " + shlex.quote(f'{key}="{value}"')


def cause(error: BaseException) -> str:
    """The cause of an error of the system, YAML, OmegaConf or Hydra, in one line."""
    chain = (error, error.__cause__, error.__context__)
    causes = (e for e in chain if isinstance(e, OmegaConfBaseException | yaml.YAMLError))
    cause = next(causes, error)
    key = getattr(cause, "full_key", None)
    return f"{key}: {reason(cause)}" if key else reason(cause)


def unknown(subject: str, what: str, word: str, known: Sequence[str]) -> str:
    """One line for a word that is not known."""
    otherwise = "moebench train --print-config shows them all" if what == "key" else ""
    return f"{subject}: no such {what}; {remedy(word, known, otherwise)}"

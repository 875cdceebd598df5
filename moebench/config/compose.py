"""`conf/`, an overlay and the typed overrides make one checked `ExperimentConfig`.

Hydra parses the overrides and composes the presets. Their values are checked one by one and merged
by dotted key. Every error therefore names one override or file, and a grid reads a preset once.
"""

import math
import shlex
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, asdict, replace
from functools import partial, reduce
from itertools import islice, product
from pathlib import Path
from typing import Any, cast, get_origin

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from moebench.config.check import check_experiment, check_ranges, check_source, check_study
from moebench.config.check_method import complete_method
from moebench.config.knob import as_type, flat, type_words
from moebench.config.presets import KNOBS, NO_EXPERIMENT, STUDY, STUDY_KNOBS, Presets
from moebench.config.schema import DataConfig, ExperimentConfig, StudyConfig, TermConfig
from moebench.config.treatment import group_of, plugins_of
from moebench.disk import read_yaml_text, reason
from moebench.errors import ConfigError, MoebenchError, apply_to_all, combine, remedy
from moebench.scopes import SCOPES

ConfigStore.instance().store(name="schema", node=ExperimentConfig)

MOST_RUNS = 100_000  # of a sweep; more are a typing error, as in seed=range(0,1e9)

# What an entry of data.sources may set.
SOURCE_KEYS = (
    *("path", "name", "config", "split", "revision", "streaming", "max_bytes"),
    *("text_column", "domain_column", "num_domains", "overlap", "text_seed", "domains"),
)

Values = dict[str, Any]  # dotted key -> value


class Composer(Presets):
    """Composes configs from presets and overrides; see `Presets` for what an overlay may be."""

    def __init__(self, overlay: Path | None = None) -> None:
        super().__init__(overlay)
        self._parser = OverridesParser.create()
        self._parsed: dict[str, Override] = {}
        self._composed: dict[tuple[str, ...], Values] = {}

    def get_group_options(self, group: str, results_filter: Any = None) -> list[str]:
        """`choices`, as Hydra's `glob()` asks for them."""
        return self.choices(group)

    def expand(self, overrides: Sequence[str]) -> list[tuple[str, ...]]:
        """The jobs of overrides in Hydra's sweep grammar: a tuple of overrides for each job.

        Raises ConfigError for an invalid override, and for a sweep of no jobs or of too many.
        """
        choices = []
        for override in self._checked(overrides):
            if override.is_sweep_override():
                values = _sweep(override)
                choices.append([f"{override.key_or_group}={value}" for value in values])
            else:
                choices.append([override.input_line or ""])
        if math.prod(map(len, choices)) > MOST_RUNS:
            raise ConfigError(
                f"{' '.join(overrides)}: is more than {MOST_RUNS} runs; sweep over fewer values"
            )
        return list(product(*choices))

    def is_sweep(self, override: str) -> bool:
        """Whether an override is written as a sweep, whatever its number of values."""
        return self._parse(override).is_sweep_override()

    def compose(
        self, overrides: Iterable[str] = (), *, base: Path | None = None
    ) -> ExperimentConfig:
        """The complete, checked config of one run, with the `balance_bsz` of its scope filled in.

        Args:
            overrides: `key=value` and `group=preset` in Hydra's grammar, without sweeps. They win
                over an experiment preset, and keys over presets.
            base: a record's `config.yaml` to start from in place of the shipped defaults.

        Raises:
            ConfigError: naming the override, what is wrong with it and a remedy.
        """
        typed = self._checked(overrides)
        for override in typed:
            if override.is_sweep_override():
                raise ConfigError(
                    f"{override.input_line}: is a sweep, where one value is needed; use moebench "
                    f"sweep, or {_how_to_quote(override.input_line)}"
                )
        picks = [
            f"{override.key_or_group}={_word(override)}"
            for override in typed
            if self._is_group(override)
        ]
        picks = [pick for pick in picks if pick != NO_EXPERIMENT]
        experiment = [pick for pick in picks if pick.startswith("experiment=")]
        others = [pick for pick in picks if pick not in experiment]
        if base is None:
            values = self._preset("config", *picks)
            # Hydra applies an experiment last. Typed presets win over it: they are applied again.
            again = others if experiment else []
        else:
            values, again = _from_file(base), experiment + others
        for pick in again:
            values = values | self._preset(pick.replace("=", "/", 1))
        keys = [override for override in typed if not self._is_group(override)]
        entries = [override for override in keys if override.key_or_group not in KNOBS]
        whole = [override for override in keys if override not in entries]
        values = values | {override.key_or_group: _value(override, KNOBS) for override in whole}
        for override in entries:
            table, _, name = override.key_or_group.rpartition(".")
            values[table] = {**values.get(table, {}), name: _value(override, KNOBS)}
        return _complete(values)

    def typed(self, overrides: Iterable[str]) -> list[tuple[str, Any]]:
        """(key, value) of overrides of keys, checked one by one."""
        return [
            (override.key_or_group, _value(override, KNOBS))
            for override in self._checked(overrides)
        ]

    def study(self, name: str, overrides: Iterable[str] = ()) -> StudyConfig:
        """A study preset, with `study.size` and other `study.*` values set."""
        if name not in self.choices(STUDY):
            raise ConfigError(_unknown(f"study={name}", STUDY, name, self.choices(STUDY)))
        typed = self._checked(overrides, STUDY_KNOBS)
        values = self._preset(f"study/{name}") | {
            override.key_or_group: _value(override, STUDY_KNOBS) for override in typed
        }
        study = StudyConfig(name=name, **{k.removeprefix("study."): v for k, v in values.items()})
        check_study(study)

        def check(words: list[str]) -> None:
            try:
                self._checked(words)
            except MoebenchError as error:
                raise combine(
                    [ConfigError(f"study={name}: {line}") for line in error.lines]
                ) from None

        apply_to_all(check, [study.overrides, *study.sizes.values(), *map(shlex.split, study.arms)])
        return study

    def _preset(self, name: str, *picks: str) -> Values:
        """The values of a file under `conf/` with some presets; keys and types are checked."""
        if (name, *picks) in self._composed:
            return self._composed[name, *picks]
        subject = " ".join(picks) or name.replace("/", "=", 1)
        homes = (root for root in self.roots if (root / f"{name}.yaml").exists())
        home = next(homes, self.conf)
        _store_scopes()
        paths = ",".join(_quoted(f"file://{root}") for root in self.roots)
        choices = [pick.split("=", 1) for pick in picks]
        overrides = [f"{group}={_quoted(preset)}" for group, preset in choices]
        GlobalHydra.instance().clear()
        try:
            with (
                warnings.catch_warnings(),
                initialize_config_dir(str(home), version_base="1.3"),
            ):
                # of a defaults list without _self_, which then comes last, as intended
                warnings.simplefilter("ignore", UserWarning)
                made = hydra_compose(name, overrides=[*overrides, f"hydra.searchpath=[{paths}]"])
            nested = cast(dict[str, Any], OmegaConf.to_container(made, resolve=True))
        except RecursionError:
            raise ConfigError(f"{subject}: includes itself; correct the preset") from None
        except (
            *(HydraException, OmegaConfBaseException, yaml.YAMLError),
            *(ValueError, OSError),  # from Hydra, for a file that is not a table
        ) as error:
            raise ConfigError(f"{subject}: {_why(error)}; correct the preset") from None
        if name.startswith("study/"):
            found, known = nested.get("study", nested), STUDY_KNOBS
            found = {f"study.{key}": value for key, value in found.items()}
        else:
            found, known = _leaves(nested), KNOBS
        self._composed[name, *picks] = {
            key: _typed(f"{subject}: {key}={value}", key, value, known)
            for key, value in found.items()
        }
        return self._composed[name, *picks]

    def _checked(
        self, overrides: Iterable[str], known: Mapping[str, Field] = KNOBS
    ) -> list[Override]:
        """Parse overrides and check them one by one; ConfigError for one that is invalid.

        Args:
            known: the valid keys; with those of a run, its groups are valid too.
        """

        def check(text: str) -> Override:
            override = self._parse(text)
            key = override.key_or_group
            _refuse_odd(override)
            if known is KNOBS and self._is_group(override):
                picks = _sweep(override) if override.is_sweep_override() else [_word(override)]
                apply_to_all(partial(self._check_pick, key), picks)
            elif key not in known and not _is_entry(key, known):
                if known is KNOBS and key.split(".")[0] == STUDY:
                    raise ConfigError(f"{override.input_line}: is for moebench sweep; leave it out")
                words = [*(self.groups if known is KNOBS else ()), *known]
                raise ConfigError(_unknown(override.input_line or key, "key", key, words))
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
            line = _unknown(subject, group, preset, self.choices(group))
            if group == "scope" and not line.endswith("?"):
                line += "; a scope of a plugin needs --plugin FILE"
            raise ConfigError(line)

    def _is_group(self, override: Override) -> bool:
        return override.key_or_group in self.groups

    def _parse(self, text: str) -> Override:
        if text not in self._parsed:
            if "=" not in text and not text.startswith("~"):
                raise ConfigError(f"{text}: is neither an option nor an override; write key=value")
            try:
                parsed = self._parser.parse_override(text)
            except (HydraException, ValueError, RecursionError) as error:
                raise ConfigError(
                    f"{text}: does not parse ({reason(error)}); {_how_to_quote(text)}"
                ) from None
            parsed.config_loader = cast(Any, self)  # for glob(), see get_group_options
            self._parsed[text] = parsed
        return self._parsed[text]


def from_dict(nested: Mapping[str, Any]) -> ExperimentConfig:
    """The config that `to_dict` gave, checked again.

    Raises ConfigError for unknown keys, wrong types and values out of range.
    """
    return _complete(
        {key: _typed(f"{key}={value}", key, value, KNOBS) for key, value in _leaves(nested).items()}
    )


def sources_of(data: DataConfig) -> list[DataConfig]:
    """The sources of data=mixture: one config for each entry of `data.sources`.

    Raises ConfigError for an invalid entry, as for the same keys on the command line.
    """
    composer, sources = Composer(), []
    for entry in data.sources:
        try:
            name, *words = shlex.split(entry)
            (_, kind), *values = composer.typed(
                [f"data.source={name}", *(f"data.{word}" for word in words)]
            )
            source = DataConfig(
                source=kind, **{key.removeprefix("data."): value for key, value in values}
            )
            for key, _ in values:
                if key.removeprefix("data.") not in SOURCE_KEYS:
                    raise ConfigError(
                        f"{key} is not a key of a source; those are {', '.join(SOURCE_KEYS)}"
                    )
            if source.source == "mixture":
                raise ConfigError("a mixture holds none; write its sources out")
            check_ranges(source)
            check_source(source)
        except (ConfigError, ValueError) as error:
            raise ConfigError(f"data.sources=[{entry!r}]: {error}") from None
        sources.append(source)
    return sources


def to_dict(config: ExperimentConfig) -> dict[str, Any]:
    """A config as nested plain values."""
    return asdict(config)


def to_yaml(config: ExperimentConfig) -> str:
    """A config as the YAML that `--print-config` shows and a record keeps."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _from_file(path: Path) -> Values:
    """The values of a record's `config.yaml`; keys and types are checked."""
    try:
        nested = OmegaConf.to_container(OmegaConf.create(read_yaml_text(path)))
        if not isinstance(nested, dict) or not nested:
            raise ValueError("holds no config")
    except (OSError, ValueError, AssertionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(
            f"--config {path}: cannot be used ({_why(error)}); name a run's config.yaml"
        ) from None
    return {
        str(key): _typed(f"--config {path}: {key}={value}", str(key), value, KNOBS)
        for key, value in _leaves(cast(dict[str, Any], nested)).items()
    }


def _leaves(nested: Mapping[str, Any]) -> Values:
    """The values of nested tables by dotted key. A table that is itself a value stays whole."""
    tables = [key for key, knob in KNOBS.items() if get_origin(knob.type) is dict]
    values: Values = {key: {} for key in tables if _inner(nested, key) == {}}
    for key, value in flat(nested):
        owner = next((table for table in tables if key.startswith(f"{table}.")), None)
        if owner is None:
            values[key] = value
        else:
            values.setdefault(owner, {})[key.removeprefix(f"{owner}.")] = value
    return values


def _inner(nested: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key of nested tables; None if there is none."""
    for name in key.split("."):
        nested = nested.get(name) if isinstance(nested, Mapping) else None  # pyright: ignore
    return nested


def _store_scopes() -> None:
    """Give Hydra a preset of each scope, which resets `balance_bsz` too."""
    for name in SCOPES:
        node = {"scope": name, "balance_bsz": None}
        ConfigStore.instance().store(group="scope", name=name, node=node, package="_global_")


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
        values = list(islice(override.sweep_string_iterator(), MOST_RUNS + 1))
    except (HydraException, ValueError) as error:
        raise ConfigError(
            f"{override.input_line}: is not a sweep that can run ({_why(error)}); list the values"
        ) from None
    if not values:
        raise ConfigError(f"{override.input_line}: the sweep is empty; give at least one value")
    return values


def _value(override: Override, known: Mapping[str, Field]) -> Any:
    return _typed(override.input_line or "", override.key_or_group, override.value(), known)


def _typed(subject: str, key: str, value: Any, known: Mapping[str, Field]) -> Any:
    """Convert a value to the type of its key; ConfigError for an unknown key or a wrong type."""
    kind: Any = float if _is_entry(key, known) else None
    if kind is None and key not in known:
        raise ConfigError(_unknown(subject, "key", key, list(known)))
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


def _complete(values: Values) -> ExperimentConfig:
    config = ExperimentConfig()
    for key, value in values.items():
        *path, name = key.split(".")
        setattr(reduce(getattr, path, config), name, value)
    check_experiment(config)
    # Batches take the domains in turn. Sorted, runs of one identity see the same batches.
    config.data.domains = config.data.domains and sorted(config.data.domains)
    config.data.heldout = sorted(config.data.heldout)
    config.data.weights = dict(sorted(config.data.weights.items()))
    if config.data.source == "mixture":
        sources_of(config.data)  # raises its errors
    # replace null by the default that it stands for
    _, size = group_of(config, TermConfig())
    scopes = (config.scope, *(term.scope for term in config.balance.terms))
    balance = replace(config.balance, plugins=plugins_of(filter(None, scopes)))
    return complete_method(replace(config, balance_bsz=size, balance=balance))


def _word(override: Override) -> str:
    value = override.value()
    return "null" if value is None else str(value)


def _quoted(text: str) -> str:
    """A text as one word of Hydra's grammar."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _how_to_quote(text: str | None) -> str:
    key, _, value = (text or "").partition("=")
    return "quote the value, as in " + shlex.quote(f'{key}="{value}"')


def _why(error: BaseException) -> str:
    """The cause of an error of the system, YAML, OmegaConf or Hydra, in one line."""
    chain = (error, error.__cause__, error.__context__)
    causes = (e for e in chain if isinstance(e, OmegaConfBaseException | yaml.YAMLError))
    cause = next(causes, error)
    key = getattr(cause, "full_key", None)
    return f"{key}: {reason(cause)}" if key else reason(cause)


def _unknown(subject: str, what: str, word: str, known: Sequence[str]) -> str:
    """One line for a word that is not known."""
    otherwise = "moebench train --print-config shows them all" if len(known) > 12 else ""
    return f"{subject}: no such {what}; {remedy(word, known, otherwise)}"

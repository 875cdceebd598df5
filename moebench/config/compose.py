"""Presets and overrides make one checked `ExperimentConfig`.

Hydra composes the presets of `conf/` and an overlay. Their values are checked one by one and merged
by dotted key. Every error therefore names one override or file, and a grid reads a preset once.
"""

import shlex
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cache, reduce
from pathlib import Path
from typing import Any, cast, get_origin

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from moebench.config.balance_keys import TermConfig
from moebench.config.check import check_experiment, check_ranges, check_source, check_study
from moebench.config.check_method import complete_method
from moebench.config.knob import flat
from moebench.config.overrides import (
    OverrideParser,
    cause,
    how_to_quote,
    quoted,
    typed_value,
    unknown,
    value_of,
    word_of,
)
from moebench.config.places import located
from moebench.config.presets import KNOBS, NO_EXPERIMENT, STUDY, STUDY_KNOBS, check_interpolations
from moebench.config.replayed import complete_replay
from moebench.config.schema import DataConfig, ExperimentConfig, StudyConfig
from moebench.config.starting import complete_start
from moebench.config.treatment import group_of, plugins_of
from moebench.errors import ConfigError, MoebenchError, apply_to_all, combine
from moebench.scopes import SCOPES
from moebench.yaml_files import read_yaml_text

ConfigStore.instance().store(name="schema", node=ExperimentConfig)

# What an entry of data.sources may set.
SOURCE_KEYS = (
    *("path", "name", "config", "split", "revision", "streaming", "max_bytes"),
    *("text_column", "domain_column", "num_domains", "overlap", "text_seed", "domains"),
)

Values = dict[str, Any]  # dotted key -> value
Composed = dict[tuple[str, ...], Values]  # a file and its presets -> what they set
COMPOSED: dict[Path, Composed] = {}  # by the shipped `conf/`; Hydra takes half a second each


class Composer(OverrideParser):
    """Composes configs from presets and overrides; see `Presets` for what an overlay may be.

    Args:
        suited: the precision that `train.precision=auto` means for a `run.device`, on the machines
            that will train: `moebench.device.suited_precision` for this one. It is asked once for
            each `run.device`. Without it, auto means fp32.
    """

    def __init__(
        self, overlay: Path | None = None, suited: Callable[[str], str] | None = None
    ) -> None:
        super().__init__(overlay)
        self._suited = cache(suited) if suited else None
        # An overlay may change; the shipped presets do not.
        self._composed: Composed = COMPOSED.setdefault(self.conf, {}) if overlay is None else {}

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
        typed = self.checked(overrides)
        for override in typed:
            if override.is_sweep_override():
                raise ConfigError(
                    f"{override.input_line}: is a sweep, where one value is needed; use moebench "
                    f"sweep, or {how_to_quote(override.input_line)}"
                )
        picks = [
            f"{override.key_or_group}={word_of(override)}"
            for override in typed
            if self.is_group(override)
        ]
        picks = [pick for pick in picks if pick != NO_EXPERIMENT]
        experiment = [pick for pick in picks if pick.startswith("experiment=")]
        others = [pick for pick in picks if pick not in experiment]
        # a method may set what it needs of a router, unless one is typed
        others.sort(key=lambda pick: pick.startswith("router="))
        if base is None:
            values = self._preset("config", *picks)
            # Hydra applies an experiment last, and a method after a router. Typed presets win over
            # the first, and a typed router over the second: they are applied again.
            again = [pick for pick in others if experiment or pick.startswith("router=")]
        else:
            values, again = _from_file(base), experiment + others
        for pick in again:
            values = values | self._preset(pick.replace("=", "/", 1))
        keys = [override for override in typed if not self.is_group(override)]
        entries = [override for override in keys if override.key_or_group not in KNOBS]
        whole = [override for override in keys if override not in entries]
        values = values | {override.key_or_group: value_of(override, KNOBS) for override in whole}
        for override in entries:
            table, _, name = override.key_or_group.rpartition(".")
            values[table] = {**values.get(table, {}), name: value_of(override, KNOBS)}
        return _complete(values, self._suited)

    def study(self, name: str, overrides: Iterable[str] = ()) -> StudyConfig:
        """A study preset, with `study.size` and other `study.*` values set."""
        if name not in self.choices(STUDY):
            raise ConfigError(unknown(f"study={name}", STUDY, name, self.choices(STUDY)))
        typed = self.checked(overrides, STUDY_KNOBS)
        values = self._preset(f"study/{name}") | {
            override.key_or_group: value_of(override, STUDY_KNOBS) for override in typed
        }
        study = StudyConfig(name=name, **{k.removeprefix("study."): v for k, v in values.items()})
        check_study(study)

        def check(words: list[str]) -> None:
            try:
                self.expand(words)
            except MoebenchError as error:
                raise combine(
                    [ConfigError(f"study={name}: {line}") for line in error.lines]
                ) from None

        words = [*map(shlex.split, [*study.arms, *study.exclude])]
        apply_to_all(check, [study.overrides, *study.sizes.values(), *words])
        return study

    def set_by(self, pick: str, *, off: bool = True) -> set[str]:
        """The keys of its own group that an override sets if it names a preset, or several.

        An experiment sets keys of other groups alone, below those of arms.

        Args:
            off: whether those count that it switches off: at a neutral 0, false, null or nothing.
        """
        picks = [word for words in self.expand([pick]) for word in words]
        chosen = [self.checked([word])[0] for word in picks]
        return {
            key
            for override in chosen
            if self.is_group(override) and override.key_or_group != "experiment"
            for key, value in self._preset(f"{override.key_or_group}/{word_of(override)}").items()
            if key.startswith(f"{override.key_or_group}.")
            and (off or value or value != KNOBS[key].metadata["neutral"])
        }

    def _preset(self, name: str, *picks: str) -> Values:
        """The values of a file under `conf/` with some presets; keys and types are checked."""
        if (name, *picks) in self._composed:
            return self._composed[name, *picks]
        subject = " ".join(picks) or name.replace("/", "=", 1)
        homes = (root for root in self.roots if (root / f"{name}.yaml").exists())
        home = next(homes, self.conf)
        _store_scopes()
        paths = ",".join(quoted(f"file://{root}") for root in self.roots)
        choices = [pick.split("=", 1) for pick in picks]
        overrides = [f"{group}={quoted(preset)}" for group, preset in choices]
        GlobalHydra.instance().clear()
        try:
            with warnings.catch_warnings(), _hydra(home):
                made = hydra_compose(name, overrides=[*overrides, f"hydra.searchpath=[{paths}]"])
            # again: a preset may include files outside the folders of groups
            for text in _texts(OmegaConf.to_container(made, resolve=False)):
                check_interpolations(text)
            nested = cast(dict[str, Any], OmegaConf.to_container(made, resolve=True))
        except RecursionError:
            raise ConfigError(f"{subject}: includes itself; correct the preset") from None
        except (
            *(HydraException, OmegaConfBaseException, yaml.YAMLError),
            *(ValueError, OSError),  # from Hydra, for a file that is not a table
        ) as error:
            raise ConfigError(f"{subject}: {cause(error)}; correct the preset") from None
        if name.startswith("study/"):
            known = STUDY_KNOBS
            values = {f"study.{key}": value for key, value in nested.get("study", nested).items()}
        else:
            known, values = KNOBS, _leaves(nested)
        self._composed[name, *picks] = {
            key: typed_value(f"{subject}: {key}={value}", key, value, known)
            for key, value in values.items()
        }
        return self._composed[name, *picks]


def from_dict(nested: Mapping[str, Any]) -> ExperimentConfig:
    """The config that `to_dict` gave, checked again.

    Raises ConfigError for unknown keys, wrong types and values out of range.
    """
    return _complete(
        {
            key: typed_value(f"{key}={value}", key, value, KNOBS)
            for key, value in _leaves(nested).items()
        }
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
    return OmegaConf.to_yaml(OmegaConf.create(asdict(config)))


def _from_file(path: Path) -> Values:
    """The values of a record's `config.yaml`; keys and types are checked."""
    try:
        nested = OmegaConf.to_container(OmegaConf.create(read_yaml_text(path)))
        if not isinstance(nested, dict) or not nested:
            raise ValueError("holds no config")
    except (OSError, ValueError, AssertionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(
            f"--config {path}: cannot be used ({cause(error)}); name a run's config.yaml"
        ) from None
    return {
        str(key): typed_value(f"--config {path}: {key}={value}", str(key), value, KNOBS)
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


def _texts(value: Any) -> Iterator[str]:
    """The texts in nested tables and lists, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        items = [*value, *value.values()] if isinstance(value, Mapping) else value
        for item in items:
            yield from _texts(item)


@contextmanager
def _hydra(home: Path) -> Iterator[None]:
    """Hydra on a folder of presets, without the warnings that concern no user of moebench.

    They are of a defaults list without _self_, which then comes last, as intended, and, in Hydra
    1.4, of `version_base`, which 1.3 needs.
    """
    warnings.simplefilter("ignore", UserWarning)
    with initialize_config_dir(str(home), version_base="1.3"):
        yield


def _store_scopes() -> None:
    """Give Hydra a preset of each scope, which resets `balance_bsz` too."""
    store = ConfigStore.instance()
    for name in SCOPES:
        if f"{name}.yaml" not in store.repo.get("scope", {}):  # Hydra 1.4 warns of a second
            node = {"scope": name, "balance_bsz": None}
            store.store(group="scope", name=name, node=node, package="_global_")


def _complete(values: Values, suited: Callable[[str], str] | None = None) -> ExperimentConfig:
    config = ExperimentConfig()
    for key, value in values.items():
        *path, name = key.split(".")
        setattr(reduce(getattr, path, config), name, value)
    if config.train.precision == "auto":
        config.train.precision = suited(config.run.device) if suited else "fp32"
    check_experiment(config)
    # Batches take the domains in turn. Sorted, runs of one identity see the same batches.
    config.data.domains = config.data.domains and sorted(config.data.domains)
    config.data.heldout = sorted(config.data.heldout)
    config.data.weights = dict(sorted(config.data.weights.items()))
    if config.data.source == "mixture":
        sources_of(config.data)  # raises its errors
    config.data = located(config.data)
    # replace null by the default that it stands for
    _, size = group_of(config, TermConfig())
    scopes = (config.scope, *(term.scope for term in config.balance.terms))
    balance = replace(config.balance, plugins=plugins_of(filter(None, scopes)))
    config = complete_replay(replace(config, balance_bsz=size, balance=balance))
    config = complete_start(config)
    return complete_method(config)

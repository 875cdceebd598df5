"""`conf/`, an overlay and the typed overrides make one checked `ExperimentConfig`.

Hydra parses overrides and sweeps and composes the chosen groups; values are then set one by one on
a copy of that, so that every error belongs to one override and a grid composes each distinct choice
of groups once.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, asdict, replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from moebench.config.schema import (
    ExperimentConfig,
    StudyConfig,
    check_experiment,
    check_ranges,
    knobs,
)
from moebench.errors import ConfigError

ConfigStore.instance().store(name="schema", node=ExperimentConfig)


def _type_name(each: Field) -> str:
    return (
        each.type.__name__
        if isinstance(each.type, type) and not hasattr(each.type, "__args__")
        else str(each.type)
    )


_MUST_BE = {
    "int": "must be a whole number, written out (1000, not 1e3)",
    "float": "must be a number",
    "bool": "must be true or false",
    "str": "must be a word",
    "list[str]": "must be a list, as in [a,b]",
    "list[int]": "must be a list of whole numbers, as in [0,1]",
    "dict[str, list[str]]": "must be a table of lists",
}
_KEYS = tuple(key for key, _, _ in knobs(ExperimentConfig()))
_TYPES = {
    key: _MUST_BE[_type_name(each).removesuffix(" | None")]
    + (" or null" if _type_name(each).endswith("None") else "")
    for config in (ExperimentConfig(), StudyConfig())
    for key, each, _ in knobs(config)
}


def shipped_conf() -> Path:
    """The `conf/` that moebench ships: inside an installed package, else beside the checkout's."""
    inside = Path(str(files("moebench"))) / "conf"
    return inside if inside.is_dir() else inside.parent.parent / "conf"


class Composer:
    """Composes configs from the shipped `conf/`, or that and an overlay of the user's own presets.

    Raises ConfigError if the overlay is no folder, or holds a file that the shipped one has too:
    an overlay adds presets and never shadows one.
    """

    def __init__(self, overlay: Path | None = None) -> None:
        self.conf = shipped_conf()
        self.overlay = overlay.resolve() if overlay else None
        if self.overlay is None:
            return
        if not self.overlay.is_dir():
            raise ConfigError(f"--config-dir {overlay}: is not a folder; name one with presets")
        for path in sorted(self.overlay.rglob("*.yaml")):
            name = path.relative_to(self.overlay)
            if (self.conf / name).exists():
                raise ConfigError(
                    f"--config-dir {overlay}: {name} would shadow the shipped preset; rename it"
                )

    def choices(self, group: str) -> list[str]:
        """The presets of a group, sorted."""
        roots = [self.conf, *([self.overlay] if self.overlay else [])]
        return sorted(path.stem for root in roots for path in (root / group).glob("*.yaml"))

    def groups(self) -> list[str]:
        """The groups that an override of a run can choose from."""
        return sorted(
            path.name for path in self.conf.iterdir() if path.is_dir() and path.name != "study"
        )

    def expand(self, overrides: Sequence[str]) -> list[tuple[str, ...]]:
        """The jobs that overrides in Hydra's sweep grammar stand for, each a tuple of overrides.

        Raises ConfigError for an override that does not parse and for a sweep of no jobs.
        """
        parsed = [_parse(text) for text in overrides]
        _refuse_duplicates(parsed)
        for each in parsed:
            self._check(each)
        jobs = BasicSweeper.split_arguments(parsed, max_batch_size=None)[0] if parsed else [[]]
        if not jobs:
            empty = next(each for each in parsed if each.is_sweep_override())
            raise ConfigError(f"{empty.input_line}: the sweep is empty; give at least one value")
        return [tuple(job) for job in jobs]

    def compose(
        self, overrides: Sequence[str] = (), *, base: Path | None = None
    ) -> ExperimentConfig:
        """One run's config, complete, checked and with its scope's `balance_bsz` filled in.

        Args:
            overrides: `key=value` and `group=preset` in Hydra's grammar, without sweeps.
            base: a record's `config.yaml` to start from in place of the shipped defaults.

        Raises:
            ConfigError: naming the override, what is wrong with it and a remedy.
        """
        parsed = [_parse(text) for text in overrides]
        _refuse_duplicates(parsed)
        groups = set(self.groups())
        chosen, values = [], []
        for each in parsed:
            if each.is_sweep_override():
                raise ConfigError(
                    f"{each.input_line}: is a sweep; a run takes one value (see moebench sweep)"
                )
            self._check(each)
            (chosen if each.key_or_group in groups else values).append(each)
        picks = tuple(f"{each.key_or_group}={_word(each.value())}" for each in chosen)
        if base is None:
            config = _compose_groups(self.conf, self.overlay, picks).copy()
        else:
            config = self._from_file(base, picks)
        for each in values:
            _set(config, each)
        return _checked(config)

    def study(self, name: str, overrides: Sequence[str] = ()) -> StudyConfig:
        """A study preset, with `study.size` and other `study.*` values set."""
        if name not in self.choices("study"):
            raise ConfigError(_unknown(f"study={name}", "study", name, self.choices("study")))
        keys = [key for key, _, _ in knobs(StudyConfig())]
        with _hydra(self.conf):
            raw = hydra_compose(f"study/{name}", overrides=_searchpath(self.overlay))
        config = OmegaConf.structured(StudyConfig)
        try:
            config.merge_with(raw.study)
        except OmegaConfBaseException as error:
            raise ConfigError(f"study={name}: {_first_line(error)}") from None
        parsed = [_parse(text) for text in overrides]
        _refuse_duplicates(parsed)
        for each in parsed:
            key = each.key_or_group.removeprefix("study.")
            if key not in keys:
                raise ConfigError(_unknown(each.input_line or key, "key", key, keys))
            _refuse_odd(each)
            _set(config, each, key)
        study = OmegaConf.to_object(config)
        assert isinstance(study, StudyConfig)
        study.name = name
        check_ranges(study)
        if study.sizes and study.size not in study.sizes:
            raise ConfigError(
                _unknown(f"study.size={study.size}", "size", study.size, list(study.sizes))
            )
        return study

    def _from_file(self, base: Path, picks: Iterable[str]) -> DictConfig:
        try:
            raw = OmegaConf.create(base.read_text(encoding="utf-8"))
            config = OmegaConf.structured(ExperimentConfig)
            config.merge_with(raw)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--config {base}: cannot be read ({error})") from None
        except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
            raise ConfigError(f"--config {base}: {_first_line(error)}") from None
        for pick in picks:
            with _hydra(self.conf):
                name = pick.replace("=", "/")
                config.merge_with(hydra_compose(name, overrides=_searchpath(self.overlay)))
        return config

    def _check(self, each: Override) -> None:
        """Refuse an override whose key or group choice does not exist."""
        _refuse_odd(each)
        key, groups = each.key_or_group, self.groups()
        if key not in groups and key not in _KEYS:
            raise ConfigError(
                _unknown(each.input_line or key, "key", key, sorted({*groups, *_KEYS}))
            )
        if key in groups:
            options = self.choices(key)
            sweep = each.sweep_iterator() if each.is_sweep_override() else [each.value()]
            for choice in map(_word, sweep):
                if choice not in options and not (key == "experiment" and choice == "null"):
                    raise ConfigError(_unknown(f"{key}={choice}", key, choice, options))


def _hydra(conf: Path) -> Any:
    GlobalHydra.instance().clear()
    return initialize_config_dir(str(conf), version_base="1.3")


def _searchpath(overlay: Path | None) -> list[str]:
    return [f"hydra.searchpath=[file://{overlay}]"] if overlay else []


@lru_cache(maxsize=256)
def _compose_groups(conf: Path, overlay: Path | None, picks: tuple[str, ...]) -> DictConfig:
    with _hydra(conf):
        try:
            config = hydra_compose("config", overrides=[*picks, *_searchpath(overlay)])
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(
                f"{' '.join(picks)}: {_first_line(error.__cause__ or error)}"
            ) from None
    return config


def _parse(text: str) -> Override:
    if "=" not in text and not text.startswith("~"):
        raise ConfigError(f"{text}: is neither an option nor an override; write key=value")
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise ConfigError(
            f"{text}: does not parse ({_first_line(error)}); quote blanks and special characters"
        ) from None


def _refuse_odd(each: Override) -> None:
    text, key = each.input_line or "", each.key_or_group
    if each.is_delete():
        raise ConfigError(f"{text}: no key can be taken away; set it to another value")
    if each.is_add() or each.is_force_add():
        raise ConfigError(f"{text}: no key can be added; drop the + if the key exists")
    if each.package is not None:
        raise ConfigError(f"{text}: a preset stays in its group; drop @{each.package}")
    if "${" in text:
        raise ConfigError(
            f"{text}: interpolations are not taken from the command line; type the value"
        )
    if key == "hydra" or key.startswith("hydra.") or "_target_" in text:
        raise ConfigError(
            f"{text}: Hydra's own settings are not open; moebench --help lists what is"
        )
    if not each.is_sweep_override() and each.value() == "":
        raise ConfigError(f"{text}: has no value; give one, or null")


def _refuse_duplicates(parsed: Iterable[Override]) -> None:
    seen: dict[str, Override] = {}
    for each in parsed:
        first = seen.setdefault(each.key_or_group, each)
        if first is not each:
            raise ConfigError(
                f"{each.key_or_group}: is set twice ({first.input_line} and {each.input_line}); "
                "keep one"
            )


def _set(config: DictConfig, each: Override, key: str | None = None) -> None:
    try:
        OmegaConf.update(config, key or each.key_or_group, each.value(), merge=False)
    except OmegaConfBaseException:
        raise ConfigError(f"{each.input_line}: {_TYPES[key or each.key_or_group]}") from None


def _checked(config: DictConfig) -> ExperimentConfig:
    try:
        made = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise ConfigError(_first_line(error)) from None
    assert isinstance(made, ExperimentConfig)
    check_experiment(made)
    if made.balance_bsz is None:
        size = {
            "sequence": 1,
            "micro": made.micro_bsz,
            "shuffled": made.global_bsz,
            "global": made.global_bsz,
        }
        made = replace(made, balance_bsz=size.get(made.scope))
    return made


def _word(value: Any) -> str:
    return "null" if value is None else str(value)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


def _unknown(said: str, what: str, word: str, known: Sequence[str]) -> str:
    """One line for a word that is not known: the nearest ones, else all of them."""
    tails = [each for each in known if each.split(".")[-1] == word.split(".")[-1]]
    near = tails or difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    if near:
        return f"{said}: no such {what}; did you mean {' or '.join(near)}?"
    if len(known) > 12:
        return f"{said}: no such {what}; moebench train --print-config shows them all"
    return f"{said}: no such {what}; there are {', '.join(known) or 'none yet'}"


def from_dict(nested: Mapping[str, Any]) -> ExperimentConfig:
    """The config that `to_dict` gave, checked again.

    Raises ConfigError for unknown keys, wrong types and values out of range.
    """
    config = OmegaConf.structured(ExperimentConfig)
    try:
        config.merge_with(OmegaConf.create(dict(nested)))
    except OmegaConfBaseException as error:
        raise ConfigError(_first_line(error)) from None
    return _checked(config)


def to_dict(config: ExperimentConfig) -> dict[str, Any]:
    """A config as nested plain values."""
    return asdict(config)


def to_yaml(config: ExperimentConfig) -> str:
    """A config as the YAML that `--print-config` shows and a record keeps."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))

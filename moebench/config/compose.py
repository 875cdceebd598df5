"""`conf/`, an overlay and the typed overrides make one checked `ExperimentConfig`.

Hydra parses overrides and composes presets; what they say is then put together as plain values by
dotted key, each checked where it comes from. So every error belongs to one override or file, and a
grid reads each preset once.
"""

import difflib
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, asdict, replace
from functools import reduce
from importlib.resources import files
from itertools import chain, islice, product
from pathlib import Path
from typing import Any, cast

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

from moebench.config.schema import (
    ExperimentConfig,
    StudyConfig,
    as_type,
    check_experiment,
    check_ranges,
    check_study,
    flat,
    knobs,
    type_words,
)
from moebench.errors import ConfigError

ConfigStore.instance().store(name="schema", node=ExperimentConfig)

MOST_RUNS = 100_000  # of a sweep; more are a slip of the hand, as in seed=range(0,1e9)
KNOBS = {key: each for key, each, _ in knobs(ExperimentConfig())}
# The name of a study is that of its preset.
STUDY_KNOBS = {f"study.{key}": each for key, each, _ in knobs(StudyConfig()) if key != "name"}

Values = dict[str, Any]  # dotted key -> value


def shipped_conf() -> Path:
    """The `conf/` that moebench ships: inside an installed package, else beside the checkout's."""
    inside = Path(str(files("moebench"))) / "conf"
    return inside if inside.is_dir() else inside.parent.parent / "conf"


class Composer:
    """Composes configs from the shipped `conf/`, or that and an overlay of the user's own presets.

    Raises ConfigError if the overlay is no folder, or holds a file that the shipped one has too:
    an overlay adds presets and never shadows one.

    Attributes:
        groups: what an override can choose a preset of, in the order of `config.yaml`.
    """

    def __init__(self, overlay: Path | None = None) -> None:
        self.conf = shipped_conf()
        self.roots = [self.conf]
        if overlay is not None:
            _refuse_shadows(overlay, self.conf)
            self.roots.append(overlay.resolve())
        # An empty group is a folder that neither git nor a wheel keeps, so folders do not tell.
        layers = yaml.safe_load((self.conf / "config.yaml").read_bytes())["defaults"]
        self.groups = tuple(name for each in layers if isinstance(each, dict) for name in each)
        self._parser = OverridesParser.create(config_loader=cast(Any, self))
        self._parsed: dict[str, Override] = {}
        self._presets: dict[tuple[str, ...], Values] = {}
        self._choices: dict[str, list[str]] = {}

    def choices(self, group: str) -> list[str]:
        """The presets of a group, sorted."""
        if group not in self._choices:
            found = (path.stem for root in self.roots for path in (root / group).glob("*.yaml"))
            self._choices[group] = sorted(found)
        return self._choices[group]

    def get_group_options(self, group: str, results_filter: Any = None) -> list[str]:
        """`choices`, as Hydra's `glob()` asks for them."""
        return self.choices(group)

    def expand(self, overrides: Sequence[str]) -> list[tuple[str, ...]]:
        """The jobs that overrides in Hydra's sweep grammar stand for, each a tuple of overrides.

        Raises ConfigError for an override that cannot be, and for a sweep of no or too many jobs.
        """
        choices = []
        for each in self._checked(overrides):
            if each.is_sweep_override():
                values = _sweep(each)
                choices.append([f"{each.key_or_group}={value}" for value in values])
            else:
                choices.append([each.input_line or ""])
        if math.prod(map(len, choices)) > MOST_RUNS:
            raise ConfigError(
                f"{' '.join(overrides)}: are more than {MOST_RUNS} runs; sweep over fewer values"
            )
        return list(product(*choices))

    def is_sweep(self, override: str) -> bool:
        """Whether an override has several values, or is written as if it had."""
        return self._parse(override).is_sweep_override()

    def compose(self, *layers: Sequence[str], base: Path | None = None) -> ExperimentConfig:
        """One run's config, complete, checked and with its scope's `balance_bsz` filled in.

        Args:
            layers: overrides, `key=value` and `group=preset` in Hydra's grammar, without sweeps. A
                later layer wins over an earlier one; within a layer, keys win over presets.
            base: a record's `config.yaml` to start from in place of the shipped defaults.

        Raises:
            ConfigError: naming the override, what is wrong with it and a remedy.
        """
        parsed = [self._checked(layer) for layer in layers]
        for each in chain(*parsed):
            if each.is_sweep_override():
                raise ConfigError(
                    f"{each.input_line}: is a sweep, where one value is needed; use moebench "
                    f"sweep, or {_how_to_quote(each.input_line)}"
                )
        last = {each.key_or_group: _word(each) for each in chain(*parsed)}
        picks = {group: last[group] for group in self.groups if last.get(group, "null") != "null"}
        experiment = picks.get("experiment")
        if base is None:
            values = dict(self._preset("config", *(f"{key}={picks[key]}" for key in picks)))
        else:
            values = _from_file(base) | (
                self._preset(f"experiment/{experiment}") if experiment else {}
            )
        for layer in parsed:
            # Presets once more: what is typed wins over an experiment, a later layer over earlier.
            for each in layer:
                key = each.key_or_group
                if key in picks and key != "experiment" and _word(each) == picks[key]:
                    values |= self._preset(f"{key}/{picks[key]}")
            for each in layer:
                key = each.key_or_group
                if key not in self.groups:
                    values[key] = _typed(each.input_line or key, key, each.value(), KNOBS)
        return _complete(values)

    def study(self, name: str, overrides: Iterable[str] = ()) -> StudyConfig:
        """A study preset, with `study.size` and other `study.*` values set."""
        if name not in self.choices("study"):
            raise ConfigError(_unknown(f"study={name}", "study", name, self.choices("study")))
        values = dict(self._preset(f"study/{name}"))
        for each in self._checked(overrides, STUDY_KNOBS):
            key = each.key_or_group
            values[key] = _typed(each.input_line or key, key, each.value(), STUDY_KNOBS)
        study = StudyConfig(name=name, **{k.removeprefix("study."): v for k, v in values.items()})
        check_ranges(study)
        check_study(study)
        return study

    def _preset(self, name: str, *picks: str) -> Values:
        """What a file under `conf/` says, its keys and types checked."""
        if (name, *picks) not in self._presets:
            said = " ".join(picks) if picks else name.replace("/", "=", 1)
            overrides = [
                *(
                    f"{group}={_quoted(preset)}"
                    for group, preset in (p.split("=", 1) for p in picks)
                ),
                *(f"hydra.searchpath=[{_quoted(f'file://{root}')}]" for root in self.roots[1:]),
            ]
            GlobalHydra.instance().clear()
            try:
                with initialize_config_dir(str(self.conf), version_base="1.3"):
                    made = hydra_compose(name, overrides=overrides)
                nested = cast(dict[str, Any], OmegaConf.to_container(made, resolve=True))
            except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
                raise ConfigError(f"{said}: {_why(error)}; correct the preset") from None
            if name.startswith("study/"):
                found = {f"study.{key}": v for key, v in (nested.get("study") or nested).items()}
            else:
                found = dict(flat(nested))
            known = STUDY_KNOBS if name.startswith("study/") else KNOBS
            self._presets[name, *picks] = {
                key: _typed(f"{said}: {key}={value}", key, value, known)
                for key, value in found.items()
            }
        return self._presets[name, *picks]

    def _checked(
        self, overrides: Iterable[str], known: Mapping[str, Field] = KNOBS
    ) -> list[Override]:
        """The overrides parsed; ConfigError for one that no run or study could have."""
        seen: dict[str, Override] = {}
        for each in map(self._parse, overrides):
            key = each.key_or_group
            _refuse_odd(each)
            if key in self.groups and known is KNOBS:
                for choice in _sweep(each) if each.is_sweep_override() else [_word(each)]:
                    allowed = [*self.choices(key), *(["null"] if key == "experiment" else [])]
                    if choice not in allowed:
                        raise ConfigError(
                            _unknown(f"{key}={choice}", key, choice, self.choices(key))
                        )
            elif key not in known:
                words = known if known is STUDY_KNOBS else {*self.groups, *known}
                raise ConfigError(_unknown(each.input_line or key, "key", key, sorted(words)))
            if key in seen:
                raise ConfigError(
                    f"{key}: is set twice ({seen[key].input_line} and {each.input_line}); keep one"
                )
            seen[key] = each
        return list(seen.values())

    def _parse(self, text: str) -> Override:
        if text not in self._parsed:
            if "=" not in text and not text.startswith("~"):
                raise ConfigError(f"{text}: is neither an option nor an override; write key=value")
            try:
                self._parsed[text] = self._parser.parse_override(text)
            except (HydraException, ValueError) as error:
                raise ConfigError(
                    f"{text}: does not parse ({_why(error)}); {_how_to_quote(text)}"
                ) from None
        return self._parsed[text]


def from_dict(nested: Mapping[str, Any]) -> ExperimentConfig:
    """The config that `to_dict` gave, checked again.

    Raises ConfigError for unknown keys, wrong types and values out of range.
    """
    return _complete(
        {key: _typed(f"{key}={value}", key, value, KNOBS) for key, value in flat(nested)}
    )


def to_dict(config: ExperimentConfig) -> dict[str, Any]:
    """A config as nested plain values."""
    return asdict(config)


def to_yaml(config: ExperimentConfig) -> str:
    """A config as the YAML that `--print-config` shows and a record keeps."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _refuse_shadows(overlay: Path, conf: Path) -> None:
    if not overlay.is_dir():
        raise ConfigError(f"--config-dir {overlay}: is not a folder; name one with presets")
    for path in sorted(overlay.rglob("*.yaml")):
        name = path.relative_to(overlay)
        if (conf / name).exists():
            raise ConfigError(
                f"--config-dir {overlay}: {name} would shadow the shipped preset; rename it"
            )


def _from_file(path: Path) -> Values:
    """What a record's `config.yaml` says, its keys and types checked."""
    try:
        text = path.read_text(encoding="utf-8")
        if any(isinstance(each, yaml.AliasEvent) for each in yaml.parse(text)):
            raise ValueError("has a YAML alias, which a record never has")
        nested = OmegaConf.to_container(OmegaConf.create(text))
        if not isinstance(nested, dict) or not nested:
            raise ValueError("holds no config")
    except (OSError, ValueError, AssertionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(
            f"--config {path}: cannot be used ({_why(error)}); name a run's config.yaml"
        ) from None
    return {
        str(key): _typed(f"--config {path}: {key}={value}", str(key), value, KNOBS)
        for key, value in flat(cast(dict[str, Any], nested))
    }


def _refuse_odd(each: Override) -> None:
    """Refuse what Hydra's grammar has and moebench has no use for."""
    text = each.input_line or ""
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


def _sweep(each: Override) -> list[str]:
    """The values of a sweep, as text that parses to them again."""
    try:
        values = list(islice(each.sweep_string_iterator(), MOST_RUNS + 1))
    except (HydraException, ValueError) as error:
        raise ConfigError(
            f"{each.input_line}: is no sweep that can be run ({_why(error)}); list the values"
        ) from None
    if not values:
        raise ConfigError(f"{each.input_line}: the sweep is empty; give at least one value")
    return values


def _typed(said: str, key: str, value: Any, known: Mapping[str, Field]) -> Any:
    """A value as its knob has it; ConfigError for an unknown key or a wrong type."""
    if key not in known:
        raise ConfigError(_unknown(said, "key", key, list(known)))
    try:
        return as_type(value, known[key].type)
    except (TypeError, OverflowError):
        raise ConfigError(f"{said}: must be {type_words(known[key].type)}") from None


def _complete(values: Values) -> ExperimentConfig:
    config = ExperimentConfig()
    for key, value in values.items():
        *path, name = key.split(".")
        setattr(reduce(getattr, path, config), name, value)
    check_experiment(config)
    if config.balance_bsz is None:
        size = {
            "sequence": 1,
            "micro": config.micro_bsz,
            "shuffled": config.global_bsz,
            "global": config.global_bsz,
        }
        config = replace(config, balance_bsz=size.get(config.scope))
    return config


def _word(each: Override) -> str:
    value = each.value()
    return "null" if value is None else str(value)


def _quoted(text: str) -> str:
    """A text as one word of Hydra's grammar."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _how_to_quote(text: str | None) -> str:
    key, _, value = (text or "").partition("=")
    return "quote the value, as in " + shlex.quote(f'{key}="{value}"')


def _why(error: BaseException) -> str:
    """The cause of an error of the system, YAML, OmegaConf or Hydra, in one line."""
    cause = error.__cause__ or error
    if isinstance(cause, OSError):
        return cause.strerror or type(cause).__name__
    if isinstance(cause, yaml.MarkedYAMLError) and cause.problem_mark:
        return f"{cause.problem} in line {cause.problem_mark.line + 1}"
    text = (str(cause).strip() or type(cause).__name__).splitlines()[0].rstrip(".")
    key = getattr(cause, "full_key", None)
    return f"{key}: {text}" if key else text


def _unknown(said: str, what: str, word: str, known: Sequence[str]) -> str:
    """One line for a word that is not known: the nearest ones, else all of them."""

    def likeness(other: str) -> float:
        parts = ((word, other), (word.rpartition(".")[2], other.rpartition(".")[2]))
        return max(
            difflib.SequenceMatcher(None, one.lower(), two.lower()).ratio() for one, two in parts
        )

    ranked = sorted(known, key=likeness, reverse=True)
    enough = max(0.6, likeness(ranked[0]) - 0.1) if ranked else 1.0
    near = [each for each in ranked if likeness(each) >= enough][:3]
    if near:
        return f"{said}: no such {what}; did you mean {' or '.join(near)}?"
    if len(known) > 12:
        return f"{said}: no such {what}; moebench train --print-config shows them all"
    return f"{said}: no such {what}; there are {', '.join(known) or 'none yet'}"

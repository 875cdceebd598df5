"""From `--launcher` and `--engine` to an engine: a preset of `conf/launcher/`, and its overrides.

A launcher is no part of a config: where a run is trained changes nothing about it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from moebench.config.presets import LAUNCHER, Presets
from moebench.disk import reason
from moebench.errors import ConfigError, remedy
from moebench.study.engines import Engine
from moebench.study.engines.local import Local
from moebench.yaml_files import read_yaml

ENGINES = ("local", "submitit", "ray", "commands")


@dataclass(frozen=True)
class Choice:
    """What the user chose.

    Attributes:
        launcher: a preset.
        options: `KEY=VALUE` words that override it; values are YAML.
        processes, gpus: of `local`; see `Local`.
        timeout: seconds without a completed step after which a run counts as hung; None: never.
    """

    launcher: str = "local"
    options: Sequence[str] = ()
    processes: int | None = None
    gpus: Sequence[int] | None = None
    timeout: float | None = None

    def engine(self, presets: Presets, runs_dir: Path) -> Engine:
        """The engine, ready to be opened for a plan. Its library is imported only here.

        Raises ConfigError for what is unknown, contradicts the engine or cannot be reached.
        """
        options = self._options(presets)
        name = options.pop("engine", None)
        if name not in ENGINES:
            raise ConfigError(
                f"--launcher {self.launcher}: engine={name}: must be one of {', '.join(ENGINES)}"
            )
        if name == "submitit":
            from moebench.study.engines.with_submitit import Submitit

            self._check_elsewhere("--engine slurm_array_parallelism=N", "gpus_per_node=N")
            return Submitit(options, runs_dir, self.timeout)
        if name == "ray":
            from moebench.study.engines.with_ray import Ray

            self._check_elsewhere("--engine num_cpus=N", "num_gpus=N")
            return Ray(options, self.timeout)
        self._check_none(name, options)
        if name == "local":
            return Local(self.processes, self.timeout, self.gpus)
        from moebench.study.engines.commands import Commands

        self._check_elsewhere("what starts the commands", "it")
        return Commands(self.timeout)

    def _options(self, presets: Presets) -> dict[str, Any]:
        """The options of the preset, overridden by the typed ones."""
        known = presets.choices(LAUNCHER)
        path = presets.path(LAUNCHER, self.launcher)
        if path is None:
            what = remedy(self.launcher, known)
            raise ConfigError(f"--launcher {self.launcher}: there is no such preset; {what}")
        try:
            options = read_yaml(path)
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ConfigError(f"--launcher {self.launcher}: {path}: {reason(error)}") from None
        if not isinstance(options, dict) or not all(isinstance(key, str) for key in options):
            raise ConfigError(f"--launcher {self.launcher}: {path}: holds no table of options")
        typed = dict(_parsed(self.options))
        if "engine" in typed:
            raise ConfigError(
                f"--engine engine={typed['engine']}: the preset sets it; choose one by --launcher"
            )
        merged = {**options, **typed}
        return {key: value for key, value in merged.items() if value is not None}

    def _check_none(self, name: str, options: Iterable[str]) -> None:
        for option in options:
            raise ConfigError(
                f"--engine {option}: --launcher {name} has no options; leave it out"
                + (", or use --jobs or --gpus" if name == "local" else "")
            )

    def _check_elsewhere(self, jobs: str, gpus: str) -> None:
        """Refuse options of this machine for an engine that has its own."""
        typed = (("--jobs", self.processes, jobs), ("--gpus", self.gpus, gpus))
        for option, given, instead in typed:
            if given is not None:
                raise ConfigError(
                    f"{option}: is for --launcher local; with {self.launcher}, {instead} decides"
                )


def _parsed(words: Iterable[str]) -> Iterable[tuple[str, Any]]:
    for word in words:
        key, equals, value = word.partition("=")
        if not (key and equals):
            raise ConfigError(f"--engine {word}: must be KEY=VALUE, as in timeout_min=60")
        try:
            yield key, yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"--engine {word}: the value is no YAML; put it in quotes") from None

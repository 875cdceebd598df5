"""The keys, the groups and their presets, listed without Hydra.

Shell completion uses this module, so it imports nothing slow.
"""

import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from moebench.config.knob import knobs
from moebench.config.schema import ExperimentConfig, StudyConfig
from moebench.errors import ConfigError
from moebench.scopes import SCOPES
from moebench.yaml_files import read_yaml_text

KNOBS = {key: field for key, field, _ in knobs(ExperimentConfig())}
# The name of a study is that of its preset.
STUDY_KNOBS = {f"study.{key}": field for key, field, _ in knobs(StudyConfig()) if key != "name"}

STUDY = "study"  # a folder of presets that is no group: a study is no part of a run's config
LAUNCHER = "launcher"  # likewise; it says where runs are trained
DEFAULT_STUDY = "scope"
SCOPE = "scope"  # a group whose presets are declared in `scopes.py`
NO_EXPERIMENT = "experiment=null"
KEY_INTERPOLATION = re.compile(r"\$\{\.*[A-Za-z_]\w*(\.\w+)*\}")  # of another key, ${model.top_k}


def shipped_conf() -> Path:
    """The `conf/` that moebench ships: inside an installed package, else beside the checkout's."""
    inside = Path(str(files("moebench"))) / "conf"
    return inside if inside.is_dir() else inside.parent.parent / "conf"


class Presets:
    """The presets in the shipped `conf/` and in a user's overlay, if there is one.

    An overlay adds presets and never shadows one. Only the folders of groups are searched, so an
    overlay with many other files costs nothing.

    Raises ConfigError for an overlay that is not a folder, has no presets, shadows a shipped one or
    holds YAML that is unsafe to read.

    Attributes:
        groups: the names of the groups, in the order of `config.yaml`.
    """

    def __init__(self, overlay: Path | None = None) -> None:
        self.conf = shipped_conf()
        self.roots = [self.conf]
        # from config.yaml, not from folders: neither git nor a wheel keeps an empty folder
        self.groups = tuple(default_presets(self.conf))
        self._choices: dict[str, list[str]] = {}
        if overlay is not None:
            self._check(overlay)
            self.roots.append(overlay.resolve())

    def choices(self, group: str) -> list[str]:
        """The presets of a group, of STUDY or of LAUNCHER, sorted."""
        if group not in self._choices:
            names = {path.stem for root in self.roots for path in _presets(root / group)}
            self._choices[group] = sorted(names.union(SCOPES) if group == SCOPE else names)
        return self._choices[group]

    def path(self, group: str, preset: str) -> Path | None:
        """The file of a preset; None if it has none, as a declared scope."""
        paths = (root / group / f"{preset}.yaml" for root in self.roots)
        return next((path for path in paths if path.is_file()), None)

    def meaning(self, group: str, preset: str) -> str:
        """What a preset is, in one line; "" for an entry point that is not imported yet."""
        if group == SCOPE and preset in SCOPES.known:
            return SCOPES.known[preset].meaning
        path = self.path(group, preset)
        return opening(path) if path else ""

    def _check(self, overlay: Path) -> None:
        subject = f"--config-dir {overlay}"
        if not overlay.is_dir():
            raise ConfigError(f"{subject}: is not a folder; name one with presets")
        presets = [
            path for group in (*self.groups, STUDY, LAUNCHER) for path in _presets(overlay / group)
        ]
        # The schema is not a file, but would be one if there were a file of its name.
        for path in [overlay / "config.yaml", overlay / "schema.yaml", *presets]:
            name = path.relative_to(overlay)
            shipped = len(name.parts) == 1 or (self.conf / name).exists()
            if path.exists() and (shipped or (name.parts[0] == SCOPE and path.stem in SCOPES)):
                raise ConfigError(f"{subject}: {name} would shadow the shipped preset; rename it")
        if not presets:
            raise ConfigError(
                f"{subject}: holds no presets; put each in a folder of its group, as in "
                f"{overlay / 'model' / 'mine.yaml'}"
            )
        words = [word for path in presets for word in _checked_words(path, overlay)]
        if "defaults" in words:  # which may include any file of the folder
            for path in sorted({*overlay.rglob("*.yaml")} - {*presets}):
                _checked_words(path, overlay)


def _checked_words(path: Path, overlay: Path) -> list[str]:
    """The scalars of a file of an overlay; none of a broken one, an error when it is chosen.

    It is parsed as Hydra parses it: libyaml refuses some of what that accepts.

    Raises ConfigError for a link out of the overlay, for YAML that is unsafe to read, and for an
    interpolation of anything but a key.
    """
    try:
        if not path.resolve().is_relative_to(overlay.resolve()):
            raise ValueError("is a link out of the folder; copy the file there")
        events = yaml.parse(read_yaml_text(path, yaml.SafeLoader), yaml.SafeLoader)
        words = [event.value for event in events if isinstance(event, yaml.ScalarEvent)]
        for word in words:
            check_interpolations(word)
    except (yaml.YAMLError, OSError, RuntimeError):
        return []
    except ValueError as error:
        name = path.relative_to(overlay)
        raise ConfigError(f"--config-dir {overlay}: {name} {error}; correct the preset") from None
    return words


def check_interpolations(text: str) -> None:
    """Raise ValueError for an interpolation of anything but a key, as `${oc.env:NAME}` is.

    Resolvers read the environment, and a preset may be a stranger's.
    """
    if "${" in KEY_INTERPOLATION.sub("", text):
        raise ValueError("has an interpolation of something else than a key; write the value")


def default_presets(conf: Path) -> dict[str, str | None]:
    """The groups of presets in the order of `config.yaml`, with what it chooses of each."""
    layers: list[Any] = yaml.safe_load((conf / "config.yaml").read_bytes())["defaults"]
    return {
        group: preset
        for layer in layers
        if isinstance(layer, dict)
        for group, preset in layer.items()
    }


def opening(preset: Path) -> str:
    """The first sentence of the comment that opens a preset."""
    comment = []
    for line in preset.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @"):  # a directive for Hydra
            comment.append(line.removeprefix("#").strip())
    text = " ".join(comment)
    sentence = re.match(r".*?[.?!](?=\s|$)", text)
    return sentence[0] if sentence else text


def _presets(folder: Path) -> Iterator[Path]:
    """The presets in a folder, sorted, without what editors leave there under hidden names."""
    paths = sorted(folder.glob("*.yaml"))
    yield from (path for path in paths if path.is_file() and not path.name.startswith("."))

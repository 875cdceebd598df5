"""One run on disk: files that say what was run, what happened and whether they are untouched.

A run's directory holds `config.yaml`, `manifest.json` (provenance), `status.json` (replaced
atomically), `metrics.jsonl` (a row a logged step), `routing/step-N.npz` (an evaluation's counts),
`checkpoints/`, and `summary.json`, which is written last, only on success, and seals the rest by
its sha256. `tensorboard/` and the report are views of these files and can be made again.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from moebench.errors import RecordError

SCHEMA_VERSION = 1
STATES = ("waiting", "running", "done", "failed", "stopped")
UNSEALED = ("status.json", "summary.json", "tasks", "tensorboard")


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file as a whole: after a crash it holds the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as readable JSON, atomically. Values that are not finite become null."""
    text = json.dumps(_finite(content), indent=2, allow_nan=False)
    write_atomically(path, text.encode() + b"\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Record:
    """A run's directory, read and written. Reading raises RecordError naming file and cause."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        return self.path.name

    def exists(self) -> bool:
        return (self.path / "config.yaml").is_file()

    # Reading

    def config(self) -> dict[str, Any]:
        """The resolved config as dotted key -> value."""
        path = self.path / "config.yaml"
        try:
            nested = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise RecordError(f"{path}: cannot be read ({_brief(error)})") from None
        if not isinstance(nested, dict):
            raise RecordError(f"{path}: holds no config")
        return dict(_flat(nested))

    def status(self) -> dict[str, Any]:
        """`state` (of STATES), `step`, `steps`, `reason`, `pid`, `heartbeat` (epoch seconds)."""
        return self._json("status.json")

    def manifest(self) -> dict[str, Any]:
        """Provenance: versions, device, data and tokenizer hash, arm, command line, start."""
        found = self._json("manifest.json")
        if found.get("schema_version") != SCHEMA_VERSION:
            raise RecordError(
                f"{self.path}: is a record of version {found.get('schema_version')}, "
                f"this moebench reads version {SCHEMA_VERSION}"
            )
        return found

    def summary(self) -> dict[str, Any]:
        """Final metrics and the seal; RecordError for a run that is not done."""
        return self._json("summary.json")

    def is_done(self) -> bool:
        return (self.path / "summary.json").is_file()

    def rows(self) -> list[dict[str, Any]]:
        """The metrics in order of step; a torn last line, as a crash leaves it, is left out."""
        path = self.path / "metrics.jsonl"
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise RecordError(f"{path}: cannot be read ({_brief(error)})") from None
        rows = []
        for number, line in enumerate(lines, 1):
            try:
                rows.append(json.loads(line))
            except ValueError:
                if number < len(lines):
                    raise RecordError(f"{path}:{number}: is not a row of metrics") from None
        return rows

    def routing_steps(self) -> list[int]:
        """The steps at which an evaluation was kept, ascending."""
        found = (self.path / "routing").glob("step-*.npz")
        return sorted(int(path.stem.removeprefix("step-")) for path in found)

    def routing(self, step: int) -> dict[str, np.ndarray]:
        """What the routers did at an evaluation; see `experiment.py` for the arrays."""
        path = self.path / "routing" / f"step-{step}.npz"
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        except (OSError, ValueError) as error:
            raise RecordError(f"{path}: cannot be read ({_brief(error)})") from None

    def damage(self) -> list[str]:
        """What does not match the seal, a line each; empty for a record whole and untouched."""
        summary = self.summary()
        sealed = summary.get("files", {})
        found = []
        for name, digest in sealed.items():
            path = self.path / name
            if not path.is_file():
                found.append(f"{name}: is missing")
            elif sha256(path) != digest:
                found.append(f"{name}: was changed")
        found += [f"{name}: was added" for name in self._sealable() if name not in sealed]
        if summary.get("sha256") != _own_digest(summary):
            found.append("summary.json: was changed")
        return found

    # Writing

    def begin(self, config_yaml: str, manifest: Mapping[str, Any]) -> None:
        """Start the record of a run, or of its continuation: what is run, and on what."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / "config.yaml", config_yaml.encode())
        write_json(self.path / "manifest.json", {"schema_version": SCHEMA_VERSION, **manifest})

    def set_status(self, state: str, **more: Any) -> None:
        assert state in STATES
        write_json(
            self.path / "status.json",
            {"state": state, "pid": os.getpid(), "heartbeat": time.time(), **more},
        )

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row of metrics: `step` and `group/name` keys with a number or a list of them."""
        line = json.dumps({k: v for k, v in _finite(row).items() if v is not None})
        with open(self.path / "metrics.jsonl", "ab") as file:
            file.write(line.encode() + b"\n")

    def cut(self, step: int) -> None:
        """Drop rows and routing after `step`, before a run continues from its checkpoint."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            kept = [row for row in self.rows() if row["step"] <= step]
            text = "".join(json.dumps(row) + "\n" for row in kept)
            write_atomically(path, text.encode())
        for later in self.routing_steps():
            if later > step:
                (self.path / "routing" / f"step-{later}.npz").unlink()

    def save_routing(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        path = self.path / "routing" / f"step-{step}.npz"
        path.parent.mkdir(exist_ok=True)
        aside = path.with_suffix(".tmp")
        with open(aside, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, **dict(arrays))
        os.replace(aside, path)

    def seal(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Write `summary.json`, with the sha256 of every other file and of its own content."""
        files = {name: sha256(self.path / name) for name in self._sealable()}
        content = _finite({"schema_version": SCHEMA_VERSION, **summary, "files": files})
        content["sha256"] = _own_digest(content)
        write_json(self.path / "summary.json", content)
        return content

    def _sealable(self) -> list[str]:
        names = (
            path.relative_to(self.path)
            for path in self.path.rglob("*")
            if path.is_file() and not path.name.startswith(".")
        )
        return sorted(name.as_posix() for name in names if name.parts[0] not in UNSEALED)

    def _json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            found = json.loads(path.read_bytes())
        except OSError as error:
            raise RecordError(f"{path}: cannot be read ({_brief(error)})") from None
        except ValueError:
            raise RecordError(f"{path}: is not JSON; the record is damaged") from None
        if not isinstance(found, dict):
            raise RecordError(f"{path}: is not an object; the record is damaged")
        return found


def find_records(root: Path) -> list[Record]:
    """The records of runs under a directory, or that directory itself if it is one; by name."""
    if Record(root).exists():
        return [Record(root)]
    if not root.is_dir():
        return []
    return [Record(path) for path in sorted(root.iterdir()) if Record(path).exists()]


def _own_digest(summary: Mapping[str, Any]) -> str:
    content = {key: value for key, value in summary.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _flat(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in nested.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _brief(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__

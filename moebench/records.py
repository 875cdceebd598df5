"""One run on disk: its config, provenance, status, metrics, results, and a seal over them.

A run's directory holds `config.yaml`, `manifest.json` (provenance), `status.json` (replaced
atomically), `metrics.jsonl` (one row a logged step), `routing/step-N.npz` (an evaluation's counts),
`checkpoints/`, `map.npz` (the experts of a prescribed router), and `summary.json`. The summary is
written last, only on success, and holds the SHA-256 of the other files. `tasks/*.json` come later,
from `evaluate`, and each holds its own SHA-256. `tensorboard/` and the report are made from these
files and can be made again.
"""

import errno
import hashlib
import io
import json
import os
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from moebench import __version__
from moebench.config.knob import flat
from moebench.disk import (
    finite,
    json_bytes,
    json_object,
    read_bytes,
    read_json,
    read_yaml,
    reason,
    remove_leftovers,
    sha256,
    write_bytes,
    write_json,
)
from moebench.errors import RecordError

SCHEMA_VERSION = 1
STATES = ("waiting", "running", "done", "failed", "stopped")
MAP = "map.npz"
UNSEALED = ("status.json", "summary.json", "tasks", "tensorboard")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of a disk without room
MAX_METRICS_BYTES = 2**32  # of metrics.jsonl


def cannot_write(path: Path, error: OSError) -> RecordError:
    """The error for a directory of runs that cannot be written."""
    remedy = "free some space, or name" if error.errno in FULL else "name"
    return RecordError(
        f"{path}: cannot be written ({error.strerror}); {remedy} another directory with --runs-dir"
    )


def printable(text: str) -> str:
    """Text without control characters, which could steer a terminal or break a line."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


class Record:
    """A run's directory, read and written. Reading raises RecordError naming file and cause."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        return self.path.name

    def exists(self) -> bool:
        """Whether there is a config, readable or not: what stands in its place is an error."""
        return os.path.lexists(self.path / "config.yaml")

    # Reading

    def config(self) -> dict[str, Any]:
        """The resolved config as dotted key -> value."""
        path = self.path / "config.yaml"
        try:
            nested = read_yaml(path)
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise _unreadable(path, error) from None
        if not isinstance(nested, dict):
            raise RecordError(f"{path}: holds no config")
        return dict(flat(nested))

    def status(self) -> dict[str, Any]:
        """`state` (of STATES), `step`, `steps`, `reason`, `pid`, `heartbeat` (epoch seconds).

        A run that ended before it wrote its status is waiting, at step 0.
        """
        try:
            status = read_json(self.path / "status.json")
        except FileNotFoundError:
            return {"state": "waiting", "step": 0}
        except (OSError, ValueError):
            status = self._json("status.json")  # raises its error
        if status.get("state") not in STATES or type(status.get("step")) is not int:
            raise RecordError(f"{self.path}/status.json: is not a status; the record is damaged")
        return status

    def manifest(self) -> dict[str, Any]:
        """Provenance: versions, device, data and tokenizer hash, arm, command line, start."""
        manifest = self._json("manifest.json")
        if manifest.get("schema_version") != SCHEMA_VERSION:
            raise RecordError(f"{self.path}: {_foreign(manifest)}")
        return manifest

    def other_version(self) -> str:
        """The versions of moebench and torch that the run began with, if not the present ones."""
        began, now = self.manifest(), {"moebench": __version__, "torch": version("torch")}
        other = (f"{name} {began.get(name)}" for name in now if began.get(name) != now[name])
        return " and ".join(other)

    def summary(self) -> dict[str, Any]:
        """Final metrics and the seal; RecordError for a run that is not done."""
        return self._json("summary.json")

    def is_done(self) -> bool:
        return (self.path / "summary.json").is_file()

    def rows(self) -> list[dict[str, Any]]:
        """The metrics in order of step, without a torn last line, as a crash leaves it."""
        path = self.path / "metrics.jsonl"
        try:
            *lines, _torn = read_bytes(path, MAX_METRICS_BYTES).split(b"\n")
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from None
        rows = []
        for number, line in enumerate(lines, 1):
            row = json_object(line)
            if row is None or type(row.get("step")) is not int:
                raise RecordError(
                    f"{path}:{number}: is not a row of metrics; the record is damaged"
                )
            rows.append(row)
        return rows

    def routing_steps(self) -> list[int]:
        """The steps whose evaluation was kept, ascending."""
        paths = (self.path / "routing").glob("step-*.npz")
        steps = (path.stem.removeprefix("step-") for path in paths)
        return sorted(int(step) for step in steps if step.isdecimal())

    def routing(self, step: int) -> dict[str, np.ndarray]:
        """The routers' choices at an evaluation; `experiment` documents the arrays."""
        path = self.path / "routing" / f"step-{step}.npz"
        try:
            with np.load(io.BytesIO(read_bytes(path)), allow_pickle=False) as arrays:
                return dict(arrays)
        except Exception as error:  # numpy and zipfile raise a dozen kinds at broken bytes
            raise _unreadable(path, error) from None

    def map(self) -> bytes:
        """The content of `map.npz`: the experts that a prescribed router sends tokens to."""
        path = self.path / MAP
        try:
            return read_bytes(path)
        except (OSError, ValueError) as error:
            raise RecordError(
                f"{path}: cannot be read ({reason(error)}); restore it, or train the run again"
            ) from None

    def tasks(self) -> dict[str, dict[str, Any]]:
        """The results of `evaluate`, by the name of their file."""
        return {path.stem: self._json(f"tasks/{path.name}") for path in self._task_paths()}

    # Sealing

    def seal(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Write `summary.json`, with the SHA-256 of every other file and of its own content."""
        files = {name: sha256(self.path / name) for name in self._sealable()}
        content = with_digest({**summary, "files": files})
        write_json(self.path / "summary.json", content)
        return content

    def save_task(self, name: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """Write `tasks/<name>.json`, with the SHA-256 of its own content."""
        result = with_digest(content)
        write_json(self.path / "tasks" / f"{name}.json", result)
        return result

    def check_seal(self, *names: str) -> dict[str, Any]:
        """The summary of a finished run, its seal checked for itself and for some files.

        Raises RecordError for the first of them that is missing or was changed.
        """
        summary = self.summary()
        sealed = _sealed_files(summary)
        if sealed is None:
            raise RecordError("summary.json: was changed after the run; see moebench verify")
        for name in names:
            if not (self.path / name).is_file():
                raise RecordError(self._lost(name))
            if sealed.get(name) != sha256(self.path / name):
                raise RecordError(f"{name}: was changed after the run; see moebench verify")
        return summary

    def damage(self) -> list[str]:
        """A line for each file that does not match the seal; empty for an untouched record."""
        try:
            summary = self.summary()
        except RecordError:
            return ["summary.json: is missing or was changed"]
        if summary.get("schema_version") != SCHEMA_VERSION:
            return [f"summary.json: {_foreign(summary)}"]
        sealed = _sealed_files(summary)
        if sealed is None:
            return ["summary.json: was changed"]
        present = self._sealable()
        return [
            *(self._lost(name) for name in sealed if name not in present),
            *(f"{name}: was added" for name in present if name not in sealed),
            *(
                f"{name}: was changed"
                for name in present
                if name in sealed and sha256(self.path / name) != sealed[name]
            ),
            *self._damaged_tasks(),
        ]

    def _lost(self, name: str) -> str:
        there = ".." not in Path(name).parts and os.path.lexists(self.path / name)
        return f"{name}: {'is not a regular file' if there else 'is missing'}"

    def _damaged_tasks(self) -> list[str]:
        return [
            f"tasks/{path.name}: was changed"
            for path in self._task_paths()
            if not _holds_digest(path)
        ]

    def _sealable(self) -> list[str]:
        """The files that a seal covers: all but the UNSEALED and those with a hidden part."""
        names = (path.relative_to(self.path) for path in self.path.rglob("*") if path.is_file())
        return sorted(
            name.as_posix()
            for name in names
            if name.parts[0] not in UNSEALED and not any(part[0] == "." for part in name.parts)
        )

    def _task_paths(self) -> list[Path]:
        return sorted((self.path / "tasks").glob("*.json"))

    # Writing

    def begin(self, config_yaml: str, manifest: Mapping[str, Any]) -> None:
        """Start the record of a run, or of its continuation.

        `config.yaml`, by which a record is found, comes last.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.path)
        write_bytes(self.path / "manifest.json", manifest_bytes(manifest))
        write_bytes(self.path / "config.yaml", config_yaml.encode())

    def set_status(self, state: str, **more: Any) -> None:
        assert state in STATES
        write_json(
            self.path / "status.json",
            {"state": state, "pid": os.getpid(), "heartbeat": time.time(), **more},
        )

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row of metrics: `step` and `group/name` keys with a number or a list of them.

        The row is on disk when this returns, so that no checkpoint outlives the rows before it.
        """
        line = json.dumps({k: v for k, v in finite(row).items() if v is not None})
        with open(self.path / "metrics.jsonl", "ab") as file:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def cut(self, step: int) -> None:
        """Remove rows and routing after `step`, before a run continues from its checkpoint."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            kept = [row for row in self.rows() if row["step"] <= step]
            text = "".join(json.dumps(row) + "\n" for row in kept)
            write_bytes(path, text.encode())
        for later in self.routing_steps():
            if later > step:
                (self.path / "routing" / f"step-{later}.npz").unlink()

    def save_routing(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        file = io.BytesIO()
        np.savez_compressed(file, allow_pickle=False, **dict(arrays))
        write_bytes(self.path / "routing" / f"step-{step}.npz", file.getvalue())

    def save_map(self, content: bytes) -> None:
        write_bytes(self.path / MAP, content)

    def _json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            return read_json(path)
        except OSError as error:
            raise _unreadable(path, error) from None
        except ValueError as error:
            raise RecordError(f"{path}: {error}; the record is damaged") from None


def manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    """The content of a run's `manifest.json`."""
    return json_bytes({"schema_version": SCHEMA_VERSION, **manifest})


def find_records(root: Path) -> list[Record]:
    """The records of runs under a directory, or that directory itself if it is one; by name.

    Hidden directories are left out: a run that is replaced moves its old record to one.
    """
    if Record(root).exists():
        return [Record(root)]
    if not root.is_dir():
        return []
    visible = (path for path in sorted(root.iterdir()) if not path.name.startswith("."))
    return [Record(path) for path in visible if Record(path).exists()]


def find_sealed(root: Path) -> list[Record]:
    """The finished runs under a directory, or that directory itself if it is one; by name.

    Raises RecordError if there is no such directory.
    """
    if not root.is_dir():
        raise RecordError(f"{root}: is not a directory; name a run, or a folder of runs")
    records = [Record(path) for path in (root, *sorted(root.iterdir()))]
    return [record for record in records if record.is_done()]


def find_unfinished(root: Path) -> list[Record]:
    """The runs under a directory, or that directory itself, that are not finished; by name."""
    return [record for record in find_records(root) if not record.is_done()]


def _sealed_files(summary: Mapping[str, Any]) -> dict[str, str] | None:
    """The SHA-256 of each sealed file; None if the summary itself was changed."""
    files = summary.get("files")
    unchanged = summary.get("sha256") == digest_of(summary)
    return files if unchanged and isinstance(files, dict) else None


def with_digest(content: Mapping[str, Any]) -> dict[str, Any]:
    """An object with the SHA-256 of its own content, which it may hold already."""
    versioned = finite({"schema_version": SCHEMA_VERSION, **content})
    return {**versioned, "sha256": digest_of(versioned)}


def _holds_digest(path: Path) -> bool:
    """Whether a file holds an object with the SHA-256 of its own content."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return False
    return content.get("sha256") == digest_of(content)


def digest_of(content: Mapping[str, Any]) -> str:
    """The SHA-256 of an object's content, without the field that holds it."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _foreign(content: Mapping[str, Any]) -> str:
    made = content.get("schema_version")
    return (
        f"is a record of version {made}, this moebench reads version {SCHEMA_VERSION}; "
        "use the moebench that made it"
    )


def _unreadable(path: Path, error: Exception) -> RecordError:
    return RecordError(f"{path}: cannot be read ({reason(error)})")

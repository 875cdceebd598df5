"""One run on disk: files that say what was run, what happened and whether they are untouched.

A run's directory holds `config.yaml`, `manifest.json` (provenance), `status.json` (replaced
atomically), `metrics.jsonl` (a row a logged step), `routing/step-N.npz` (an evaluation's counts),
`checkpoints/`, and `summary.json`, which is written last, only on success, and seals the rest by
its sha256. `tasks/*.json` come later, from `evaluate`, and seal themselves. `tensorboard/` and the
report are views of these files and can be made again.
"""

import errno
import hashlib
import io
import json
import math
import os
import shutil
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from moebench import __version__
from moebench.config.schema import flat
from moebench.config.untrusted import load
from moebench.errors import RecordError

SCHEMA_VERSION = 1
STATES = ("waiting", "running", "done", "failed", "stopped")
UNSEALED = ("status.json", "summary.json", "tasks", "tensorboard")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of a disk that takes no more
# Metrics of an evaluation: a summary holds their last value; of all others, the mean at the end.
EVALUATED = (
    *("valid/", "assigned/", "tune/", "heldout/", "specialization/"),
    *("load/max_vio_global", "load/dead_experts_global", "load/utilization/"),
    *("router/changed", "forces/"),
)
COSTS = "cost.json"  # beside the plan of a study: its arms, each timed by itself
SETTLED = 0.1  # share of the steps, at the end, over which a step's metrics are averaged
LEFTOVERS = ".*.tmp"  # what a killed process leaves of a file or folder that it wrote aside


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


def cannot_write(path: Path, error: OSError) -> RecordError:
    """What to tell of a directory of runs in which nothing can be kept."""
    remedy = "free some space, or name" if error.errno in FULL else "name"
    return RecordError(
        f"{path}: cannot be written ({error.strerror}); {remedy} another directory with --runs-dir"
    )


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def printable(text: str) -> str:
    """Text without control characters, which could steer a terminal or break a line."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


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
            nested = load(path)
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise RecordError(f"{path}: cannot be read ({_brief(error)})") from None
        if not isinstance(nested, dict):
            raise RecordError(f"{path}: holds no config")
        return dict(flat(nested))

    def status(self) -> dict[str, Any]:
        """`state` (of STATES), `step`, `steps`, `reason`, `pid`, `heartbeat` (epoch seconds).

        A run that was ended before it could say anything is waiting, at step 0.
        """
        if not (self.path / "status.json").exists():
            return {"state": "waiting", "step": 0}
        found = self._json("status.json")
        if found.get("state") not in STATES or type(found.get("step")) is not int:
            raise RecordError(f"{self.path}/status.json: is no status; the record is damaged")
        return found

    def manifest(self) -> dict[str, Any]:
        """Provenance: versions, device, data and tokenizer hash, arm, command line, start."""
        found = self._json("manifest.json")
        if found.get("schema_version") != SCHEMA_VERSION:
            raise RecordError(f"{self.path}: {_foreign(found)}")
        return found

    def other_version(self) -> str:
        """The versions of moebench and torch that the run began with, where they are not ours."""
        began, ours = self.manifest(), {"moebench": __version__, "torch": version("torch")}
        other = (f"{name} {began.get(name)}" for name in ours if began.get(name) != ours[name])
        return " and ".join(other)

    def summary(self) -> dict[str, Any]:
        """Final metrics and the seal; RecordError for a run that is not done."""
        return self._json("summary.json")

    def is_done(self) -> bool:
        return (self.path / "summary.json").is_file()

    def rows(self) -> list[dict[str, Any]]:
        """The metrics in order of step; a torn last line, as a crash leaves it, is left out."""
        path = self.path / "metrics.jsonl"
        try:
            *lines, _torn = path.read_bytes().split(b"\n")
        except OSError as error:
            raise RecordError(f"{path}: cannot be read ({_brief(error)})") from None
        rows = []
        for number, line in enumerate(lines, 1):
            row = _parsed(line)
            if not isinstance(row, dict) or type(row.get("step")) is not int:
                raise RecordError(
                    f"{path}:{number}: is not a row of metrics; the record is damaged"
                )
            rows.append(row)
        return rows

    def routing_steps(self) -> list[int]:
        """The steps at which an evaluation was kept, ascending."""
        found = (self.path / "routing").glob("step-*.npz")
        steps = (path.stem.removeprefix("step-") for path in found)
        return sorted(int(step) for step in steps if step.isdecimal())

    def routing(self, step: int) -> dict[str, np.ndarray]:
        """What the routers did at an evaluation; see `experiment.py` for the arrays."""
        path = self.path / "routing" / f"step-{step}.npz"
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
                return dict(arrays)
        except Exception as error:  # numpy and zipfile raise a dozen kinds at broken bytes
            raise RecordError(f"{path}: cannot be read ({_brief(error)})") from None

    def damage(self) -> list[str]:
        """What does not match the seal, a line each; empty for a record whole and untouched."""
        try:
            summary = self.summary()
        except RecordError:
            return ["summary.json: is missing or was changed"]
        if summary.get("schema_version") != SCHEMA_VERSION:
            return [f"summary.json: {_foreign(summary)}"]
        sealed = summary.get("files")
        if summary.get("sha256") != _own_digest(summary) or not isinstance(sealed, dict):
            return ["summary.json: was changed"]
        there = self._sealable()
        return [
            *(f"{name}: is missing" for name in sealed if name not in there),
            *(f"{name}: was added" for name in there if name not in sealed),
            *(
                f"{name}: was changed"
                for name in there
                if name in sealed and sha256(self.path / name) != sealed[name]
            ),
            *self._damaged_tasks(),
        ]

    def tasks(self) -> dict[str, dict[str, Any]]:
        """What `evaluate` found, by the name of its file."""
        found = sorted((self.path / "tasks").glob("*.json"))
        return {path.stem: self._json(f"tasks/{path.name}") for path in found}

    def _damaged_tasks(self) -> list[str]:
        found = sorted((self.path / "tasks").glob("*.json"))
        contents = [(path.name, _parsed(path.read_bytes())) for path in found]
        return [
            f"tasks/{name}: was changed"
            for name, content in contents
            if not isinstance(content, dict) or content.get("sha256") != _own_digest(content)
        ]

    # Writing

    def begin(self, config_yaml: str, manifest: Mapping[str, Any]) -> None:
        """Start the record of a run, or of its continuation: what is run, and on what.

        `config.yaml`, by which a record is found, comes last.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        for left in list(self.path.rglob(LEFTOVERS)):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        write_json(self.path / "manifest.json", {"schema_version": SCHEMA_VERSION, **manifest})
        write_atomically(self.path / "config.yaml", config_yaml.encode())

    def set_status(self, state: str, **more: Any) -> None:
        assert state in STATES
        write_json(
            self.path / "status.json",
            {"state": state, "pid": os.getpid(), "heartbeat": time.time(), **more},
        )

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row of metrics: `step` and `group/name` keys with a number or a list of them.

        It is on the disk when this returns, so that no checkpoint outlives the rows before it.
        """
        line = json.dumps({k: v for k, v in _finite(row).items() if v is not None})
        with open(self.path / "metrics.jsonl", "ab") as file:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

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
        file = io.BytesIO()
        np.savez_compressed(file, allow_pickle=False, **dict(arrays))
        write_atomically(self.path / "routing" / f"step-{step}.npz", file.getvalue())

    def seal(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Write `summary.json`, with the sha256 of every other file and of its own content."""
        files = {name: sha256(self.path / name) for name in self._sealable()}
        content = _finite({"schema_version": SCHEMA_VERSION, **summary, "files": files})
        content["sha256"] = _own_digest(content)
        write_json(self.path / "summary.json", content)
        return content

    def save_task(self, name: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """Write `tasks/<name>.json`, with the sha256 of its own content."""
        made = _finite({"schema_version": SCHEMA_VERSION, **content})
        made["sha256"] = _own_digest(made)
        write_json(self.path / "tasks" / f"{name}.json", made)
        return made

    def _sealable(self) -> list[str]:
        """The files that a seal covers: all but the UNSEALED and what a name hides with a dot."""
        names = (path.relative_to(self.path) for path in self.path.rglob("*") if path.is_file())
        return sorted(
            name.as_posix()
            for name in names
            if name.parts[0] not in UNSEALED and not any(part[0] == "." for part in name.parts)
        )

    def _json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            found = _parsed(path.read_bytes())
        except OSError as error:
            raise RecordError(f"{path}: cannot be read ({_brief(error)})") from None
        if not isinstance(found, dict):
            raise RecordError(f"{path}: is no JSON object; the record is damaged")
        return found


def find_records(root: Path) -> list[Record]:
    """The records of runs under a directory, or that directory itself if it is one; by name.

    Hidden directories are none: they are what a run that is replaced leaves aside.
    """
    if Record(root).exists():
        return [Record(root)]
    if not root.is_dir():
        return []
    shown = (path for path in sorted(root.iterdir()) if not path.name.startswith("."))
    return [Record(path) for path in shown if Record(path).exists()]


def find_sealed(root: Path) -> list[Record]:
    """The finished runs under a directory, or that directory itself if it is one; by name.

    Raises RecordError if there is no such directory.
    """
    if not root.is_dir():
        raise RecordError(f"{root}: is no directory; name a run, or a folder of runs")
    records = [Record(path) for path in (root, *sorted(root.iterdir()))]
    return [record for record in records if record.is_done()]


def _own_digest(summary: Mapping[str, Any]) -> str:
    content = {key: value for key, value in summary.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _parsed(text: bytes) -> Any:
    """JSON, or None where it is none, or so deep that only malice makes it."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _foreign(content: Mapping[str, Any]) -> str:
    made = content.get("schema_version")
    return (
        f"is a record of version {made}, this moebench reads version {SCHEMA_VERSION}; "
        "use the moebench that made it"
    )


def _brief(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__

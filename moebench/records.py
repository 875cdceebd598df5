"""One run on disk: its config, provenance, status, metrics, results, and a seal over them.

A run's directory holds `config.yaml`, `manifest.json` (provenance), `status.json` (replaced
atomically), `metrics.jsonl` (one row a logged step), `routing/step-N.npz` (an evaluation's counts),
`checkpoints/`, `map.npz` (the experts of a prescribed router), and `summary.json`. The summary is
written last, only on success, and holds the SHA-256 of the other files. `tasks/*.json` come later,
from `evaluate`, and each holds its own SHA-256. `tensorboard/` and the report are made from these
files and can be made again.
"""

import io
import json
import os
import time
from collections.abc import Iterator, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from moebench import __version__
from moebench.config.knob import as_type, flat, type_words
from moebench.config.presets import KNOBS
from moebench.contents import Arrays, read_arrays
from moebench.disk import (
    FULL,
    finite,
    json_bytes,
    make_folder,
    open_to_append,
    read_bytes,
    reason,
    remove_leftovers,
    why_not_written,
    write_bytes,
    write_json,
)
from moebench.errors import CONTINUES, RecordError
from moebench.record_files import (
    MANIFEST,
    ROUTING,
    STATES,
    STATUS,
    STEP,
    SUMMARY,
    foreign,
    kept_rows,
    read_object,
    unreadable,
)
from moebench.seals import (
    SCHEMA_VERSION,
    changed,
    is_as_written,
    is_sealed,
    refuse_links,
    seal_of,
    sealable,
    seen_changes,
    with_digest,
)
from moebench.yaml_files import read_yaml

MAP = "map.npz"
RESULTS = ("config.yaml", "manifest.json")  # what gives the numbers of a summary their meaning
SEE = "see moebench verify"


def cannot_write(path: Path, error: OSError) -> RecordError:
    """The error for a directory of runs that cannot be written."""
    remedy = "free some space, or name" if error.errno in FULL else "name"
    return RecordError(
        f"{path}: cannot be written ({why_not_written(path, error)}); {remedy} another directory "
        "with --runs-dir"
    )


def printable(text: str) -> str:
    """Text without control characters, which could steer a terminal or break a line."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _same(began: object, now: str) -> bool:
    """Whether a version is the installed one: torch calls PyPI's 2.13.0 2.13.0+cu130."""
    return began == now or ("+" not in now and str(began).partition("+")[0] == now)


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
        """The resolved config as dotted key -> value; known keys have the type of the schema."""
        path = self.path / "config.yaml"
        try:
            nested = read_yaml(path)
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise unreadable(path, error) from None
        if not isinstance(nested, dict):
            raise RecordError(f"{path}: holds no config")
        values = dict(flat(nested))
        for key in values.keys() & KNOBS.keys():
            try:
                values[key] = as_type(values[key], KNOBS[key].type)
            except (TypeError, OverflowError):
                must = f"must be {type_words(KNOBS[key].type)}"
                raise RecordError(f"{path}: {key}={values[key]}: {must}") from None
        return values

    def status(self) -> dict[str, Any]:
        """`state` (of STATES), `step`, `steps`, `reason`, `pid`, `heartbeat` (epoch seconds).

        A run that ended before it wrote its status is waiting, at step 0.
        """
        path = self.path / "status.json"
        status = read_object(path, STATUS, missing={"state": "waiting", "step": 0})
        if {"sha256", "schema_version"} & status.keys() and not is_sealed(status):
            raise RecordError(f"{path}: was changed; the next session writes it")
        return status

    def manifest(self) -> dict[str, Any]:
        """Provenance: versions, device, data and tokenizer hash, arm, command line, start."""
        return read_object(self.path / "manifest.json", MANIFEST, versioned=True)

    def other_version(self) -> str:
        """The versions of moebench and torch that the run began with, if not the present ones."""
        began, now = self.manifest(), {"moebench": __version__, "torch": version("torch")}
        other = (
            f"{name} {began.get(name)}" for name in now if not _same(began.get(name), now[name])
        )
        return " and ".join(other)

    def summary(self) -> dict[str, Any]:
        """Final metrics and the seal of a run that is done.

        Raises RecordError for another run, and if the summary does not match its own SHA-256.
        """
        summary = read_object(self.path / "summary.json", SUMMARY, versioned=True)
        if not is_sealed(summary):
            raise self._changed("summary.json: was changed")
        return summary

    def is_done(self) -> bool:
        """Whether there is a summary, whole or not."""
        return (self.path / "summary.json").is_file()

    def rows(self) -> list[dict[str, Any]]:
        """The metrics in order of step, without a torn last line, as a crash leaves it."""
        return kept_rows(self.path / "metrics.jsonl")[0]

    def routing_steps(self) -> list[int]:
        """The steps whose evaluation was kept, ascending."""
        found = (STEP.fullmatch(path.stem) for path in (self.path / "routing").glob("*.npz"))
        return sorted(int(match[1]) for match in found if match)

    def routing(self, step: int, *needed: str) -> Arrays:
        """The routers' choices at an evaluation; `record_files.ROUTING` names the arrays.

        Args:
            needed: the arrays that must be there; earlier versions wrote fewer.
        """
        path = self.path / "routing" / f"step-{step}.npz"
        try:
            return read_arrays(path, ROUTING, *needed)
        except (OSError, ValueError) as error:
            raise unreadable(path, error) from None

    def probes(self) -> dict[int, np.ndarray]:
        """Step -> the experts of the probe's tokens, of equal shape, where they were kept."""
        of_step = {step: self.routing(step).get("probe_index") for step in self.routing_steps()}
        probes = {step: probe for step, probe in of_step.items() if probe is not None}
        if len({probe.shape for probe in probes.values()}) > 1:
            raise RecordError(f"{self.path}/routing: the evaluations differ in shape; {SEE}")
        return probes

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
        return {path.stem: self._task(path) for path in self._task_paths()}

    def _task(self, path: Path) -> dict[str, Any]:
        result = read_object(path)
        if not is_sealed(result):
            raise self._changed(f"tasks/{path.name}: was changed")
        return result

    # Sealing

    def seal(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Write `summary.json`, with the SHA-256 of every other file and of its own content."""
        content = with_digest({**summary, **seal_of(self.path, sealable(self.path))})
        write_json(self.path / "summary.json", content)
        return content

    def save_task(self, name: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """Write `tasks/<name>.json`, with the SHA-256 of its own content."""
        result, path = with_digest(content), self.path / "tasks" / f"{name}.json"
        self.check_links()
        try:
            write_json(path, result)
        except OSError as error:
            why = why_not_written(self.path, error)
            raise RecordError(
                f"{path}: cannot be written ({why}); make room for {len(json_bytes(result)):,} "
                "bytes there, or evaluate a copy of the run"
            ) from None
        return result

    def check_seal(self, *names: str) -> dict[str, Any]:
        """The summary of a finished run, its seal checked for itself and for some files.

        Raises RecordError for the first of them that is missing or was changed.
        """
        summary = self.summary()
        if not is_as_written(self.path / "summary.json", summary):
            raise self._changed("summary.json: was changed")
        for name in names:
            if line := changed(self.path, summary, name):
                raise self._changed(line)
        return summary

    def refuse_changes(self, *, results_only: bool = False) -> None:
        """Raise RecordError, with a remedy, if a finished run is not what it wrote.

        Args:
            results_only: look at the summary, the config and the manifest, in place of a quick look
                at all files (`seen_damage`).
        """
        try:
            summary = self.check_seal(*RESULTS if results_only else ())
            for line in () if results_only else self._seen_changes(summary):
                raise self._changed(line)
        except RecordError as error:
            line = str(error).removesuffix(f"; {SEE}")
            remedy = "--force starts afresh"
            if line.startswith(f"{self.path}/summary.json"):
                remedy = f"remove it and {CONTINUES} from the last checkpoint"
            raise RecordError(f"{line}; restore it, or {remedy}") from None

    def seen_damage(self) -> list[str]:
        """What a quick look finds changed in a finished run, a line a file; see `seen_changes`."""
        try:
            return list(self._seen_changes(self.summary()))
        except (OSError, RecordError):
            return ["summary.json: is missing or was changed"]

    def _seen_changes(self, summary: Mapping[str, Any]) -> Iterator[str]:
        sealed_at = (self.path / "summary.json").stat().st_mtime_ns
        return seen_changes(self.path, summary, sealed_at)

    def damage(self) -> list[str]:
        """A line for each file that does not match the seal; empty for an untouched record."""
        try:
            summary = read_object(self.path / "summary.json", SUMMARY)
        except RecordError:
            return ["summary.json: is missing or was changed"]
        if not is_sealed(summary) or not is_as_written(self.path / "summary.json", summary):
            return ["summary.json: was changed"]
        if summary.get("schema_version") != SCHEMA_VERSION:
            return [f"summary.json: {foreign(summary)}"]
        names = dict.fromkeys((*summary["files"], *sealable(self.path)))
        lines = [line for name in names if (line := changed(self.path, summary, name))]
        if not os.path.lexists(self.path / "status.json"):
            lines.append("status.json: is missing")
        return [*lines, *self.unsealed_damage()]

    def unsealed_damage(self) -> list[str]:
        """A line for each file with a SHA-256 of its own that does not match it."""
        lines = []
        tasks = ((path, partial(self._task, path)) for path in self._task_paths())
        for path, read in ((self.path / "status.json", self.status), *tasks):
            try:
                content = read()
            except RecordError as error:
                line = str(error).removeprefix(f"{self.path}/").partition(";")[0]
                lines.append(line.removesuffix(" after the run"))
            else:
                if "sha256" in content and not is_as_written(path, content):
                    lines.append(f"{path.relative_to(self.path)}: was changed")
        return lines

    def _changed(self, line: str) -> RecordError:
        return RecordError(f"{self.path}/{line} after the run; {SEE}")

    def _task_paths(self) -> list[Path]:
        return sorted((self.path / "tasks").glob("*.json"))

    # Writing

    def check_links(self) -> None:
        """Raise RecordError for a link out of the record, by which its files would come elsewhere.

        Whoever writes into a record that others may have made calls this first.
        """
        refuse_links(self.path)

    def begin(self, config_yaml: str, manifest: Mapping[str, Any]) -> None:
        """Start the record of a run, or of its continuation.

        `config.yaml`, by which a record is found, comes last.
        """
        make_folder(self.path)
        remove_leftovers(self.path)
        write_bytes(self.path / "manifest.json", manifest_bytes(manifest))
        write_bytes(self.path / "config.yaml", config_yaml.encode())

    def set_status(self, state: str, **more: Any) -> None:
        assert state in STATES
        content = {"state": state, "pid": os.getpid(), "heartbeat": time.time(), **more}
        write_json(self.path / "status.json", with_digest(content), lasting=False)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row of metrics: `step` and `group/name` keys with a number or a list of them.

        The row is on disk when this returns, so that no checkpoint outlives the rows before it.
        """
        line = json.dumps({k: v for k, v in finite(row).items() if v is not None})
        with open_to_append(self.path / "metrics.jsonl") as file:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def cut(self, step: int, until: int | None = None) -> str:
        """Remove rows and routing after `step`, before a run continues from its checkpoint.

        Args:
            until: see `kept_rows`.

        Returns:
            What is wrong with a removed row; "" if nothing is.
        """
        path, wrong = self.path / "metrics.jsonl", ""
        if path.exists():
            kept, wrong = kept_rows(path, step, until)
            write_bytes(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
        for later in self.routing_steps():
            if later > step:
                (self.path / "routing" / f"step-{later}.npz").unlink()
        return wrong

    def save_routing(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        file = io.BytesIO()
        np.savez_compressed(file, allow_pickle=False, **dict(arrays))
        write_bytes(self.path / "routing" / f"step-{step}.npz", file.getvalue())

    def save_map(self, content: bytes) -> None:
        write_bytes(self.path / MAP, content)


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

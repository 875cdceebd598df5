"""What a tracker gets of one record, in the order in which it was written."""

import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from moebench.config.knob import flat
from moebench.disk import open_regular
from moebench.record_files import read_row
from moebench.records import Record
from moebench.tensorboard import MAX_IMAGES
from moebench.tensorboard.pictures import Picture, of_routing

EVALUATED = "valid/nats"  # in the rows of evaluations
ENDED = ("done", "failed", "stopped")


class About(NamedTuple):
    """What is known of a run when it begins.

    Attributes:
        name: of its directory.
        arm: its label, by which trackers group runs.
        identity: a short text that no other run has.
        start: in epoch seconds.
        config: the resolved config, dotted key -> value.
        facts: what else tells where it comes from, as texts.
    """

    name: str
    arm: str
    identity: str
    start: float
    config: dict[str, Any]
    facts: dict[str, str]


class Sink(Protocol):
    """A run in a tracker."""

    def row(
        self, step: int, metrics: dict[str, float], pictures: dict[str, Picture], time: float
    ) -> None:
        """Add metrics and pictures of a step, at a time in epoch seconds. Steps ascend."""
        ...

    def end(self, state: str, summary: dict[str, float]) -> None:
        """End the run, with its final metrics if it is done, and wait until all is sent."""
        ...


class Tracker(Protocol):
    """A tracker that takes runs.

    Attributes:
        name: as the user names it.
    """

    name: str

    def begin(self, about: About) -> Sink:
        """Begin a run, and replace what the tracker has of it."""
        ...


class Feed:
    """Follows a record that may still grow.

    Args:
        record: of a run that has begun.
        tracker: which begins the run now, and replaces what it has of it.

    Raises RecordError if the record cannot be read.
    """

    def __init__(self, record: Record, tracker: Tracker) -> None:
        self.record, self._tracker = record, tracker
        self._begin()

    def _begin(self) -> None:
        self._manifest = self._changed()
        self._about = about(self.record)
        self._domains = [str(name) for name in self.record.manifest().get("domains") or ()]
        self._run = self._tracker.begin(self._about)
        self._at = self._number = 0  # bytes and lines of metrics.jsonl that were read
        self._step = -1  # the last that was sent
        self._part = -1  # of the run, of MAX_IMAGES parts, the last with pictures

    def _changed(self) -> int:
        """When the manifest was written, in nanoseconds; 0 without one."""
        path = self.record.path / "manifest.json"
        return path.stat().st_mtime_ns if path.exists() else 0

    def send(self, *, last: bool = False) -> bool:
        """Send what is new; whether the run has ended here.

        Args:
            last: whether it ends here, whatever its state.
        """
        if self._changed() != self._manifest:  # by a session that continues, or starts afresh
            self._manifest = self._changed()
            if about(self.record).start != self._about.start:
                self._begin()
        done = self.record.is_done()  # before the rows are read: none comes later
        for row in self._rows(whole=done or last):
            step = row["step"]
            metrics = {key: value for key, value in row.items() if _is_metric(key, value)}
            time = self._about.start + float(row.get("time", 0))
            self._run.row(step, metrics, self._pictures(step), time)
        if not (done or last):
            return False
        summary = self.record.summary() if done else {}
        state = "done" if done else str(self.record.status()["state"])
        final = {key: value for key, value in summary.items() if _is_metric(key, value)}
        self._run.end(state if state in ENDED else "stopped", final)
        return True

    def _rows(self, *, whole: bool) -> Iterator[dict[str, Any]]:
        """The whole rows that were added, but not those of steps that were sent before.

        Args:
            whole: whether the last row is complete, since the routing of its evaluation comes
                after it.
        """
        path = self.record.path / "metrics.jsonl"
        if not path.exists():
            return
        with open_regular(path) as file:
            size = file.seek(0, 2)
            file.seek(max(0, self._at - 1))
            if self._at and file.read(1) != b"\n":  # a run that continued has cut its rows
                self._at = self._number = 0
                file.seek(0)
            while (line := file.readline()).endswith(b"\n"):
                row = read_row(path, self._number + 1, line[:-1])
                evaluated = EVALUATED in row and not self._routing(row["step"]).exists()
                if evaluated and not whole and self._at + len(line) >= size:
                    return
                self._at, self._number = self._at + len(line), self._number + 1
                if row["step"] > self._step:
                    self._step = row["step"]
                    yield row

    def _routing(self, step: int) -> Path:
        return self.record.path / "routing" / f"step-{step}.npz"

    def _pictures(self, step: int) -> dict[str, Picture]:
        """The pictures of a step, by their names; few of a long run."""
        steps = self._about.config.get("train.steps")
        part = (MAX_IMAGES - 1) * step // max(1, steps if isinstance(steps, int) else 1)
        if part <= self._part or not self._routing(step).exists():
            return {}
        self._part = part
        routing, words = self.record.routing(step), f"step {step}, arm {self._about.arm}"
        return dict(of_routing(routing, self._domains, words))


def about(record: Record) -> About:
    """What a tracker is told of a run. Raises RecordError if it cannot be read."""
    manifest, config = record.manifest(), dict(flat(record.config()))
    start = str(manifest.get("start", ""))
    facts = {
        "moebench": str(manifest.get("moebench")),
        "torch": str(manifest.get("torch")),
        "device": str(manifest.get("device_name")),
        "commit": str((manifest.get("git") or {}).get("commit")),
        "data": str((manifest.get("data") or {}).get("content_hash")),
        "arm_hash": str(manifest.get("arm_hash")),
    }
    arm = str(manifest.get("arm", record.name))
    identity = re.sub(r"\W", "_", str(manifest.get("hash", record.name)))  # trackers search for it
    return About(record.name, arm, identity, _seconds(start), config, facts)


def _seconds(iso: str) -> float:
    try:
        return datetime.fromisoformat(iso).timestamp()
    except ValueError:
        return 0.0


def _is_metric(key: str, value: object) -> bool:
    return "/" in key and isinstance(value, int | float) and not isinstance(value, bool)

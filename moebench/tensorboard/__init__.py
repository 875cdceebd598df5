"""A run in TensorBoard: an event file made from the record, which can be made again at any time.

`<run>/tensorboard/` holds one event file. Scalars have the names of the metrics. The loads of each
layer's experts and the routers' probabilities are histograms. An evaluation adds pictures: of the
loads, of the experts that meet in a token, and for each layer of the domains' tokens. The layout of
the page Custom Scalars groups charts under the questions of the catalogue. A finished run also has
a row on the page HParams, with the keys that define its arm and its final metrics.

This package does not import torch. Event times come from the record, so two views of one record
are equal byte by byte.
"""

# protobuf creates its classes at import, so pyright does not know them.
# pyright: reportAttributeAccessIssue=false

import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.histogram import metadata as histogram
from tensorboard.plugins.histogram.summary_v2 import histogram_pb
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util import tensor_util

from moebench.catalogue import find, random_values
from moebench.config.identity import scope_of
from moebench.disk import publish
from moebench.records import Record
from moebench.tensorboard.layout import FINAL_TAG, final_metrics, hparams_row, layout
from moebench.tensorboard.pictures import Picture, of_routing
from moebench.tensorboard.text import is_finite, text

MAX_IMAGES = 5  # of each picture in a run: the first, the last and some in between
PREFIX, SUFFIX = "events.out.tfevents.", ".moebench"


class View:
    """The event file of one run, which `add` extends while the run trains.

    Opening a view writes a new file with all that the record holds by then. It never continues the
    file of an interrupted run, which may be torn or too long. A record has one writer: do not open
    the view of a run that another process trains.

    Args:
        record: of a run that has a manifest.

    Raises:
        RecordError: if the record cannot be read.
        OSError: if the view cannot be written. The old view then still exists.
    """

    def __init__(self, record: Record) -> None:
        self.record = record
        self.path = record.path / "tensorboard"
        manifest = record.manifest()
        self._arm = text(manifest.get("arm", record.name))
        self._domains = [text(name) for name in manifest.get("domains") or ()]
        self._science: dict[str, Any] = manifest.get("science") or {}
        self._start = self._last_time = _epoch_seconds(manifest.get("start"))
        self._last_step = -1
        config = record.config()
        self._steps = config.get("train.steps")
        self._random = random_values(manifest, *_shape(config))
        self._pictured = -1  # the last part of the run, of MAX_IMAGES parts, with images

        self.path.mkdir(exist_ok=True)
        old = [path for path in self.path.iterdir() if "tfevents" in path.name]
        # a new name, because TensorBoard keeps reading the file that it opened
        name = f"{PREFIX}{1 + max(map(_generation, old), default=0):010d}{SUFFIX}"
        aside = self.path / ".aside"
        self._file = open(aside, "wb")  # noqa: SIM115
        self._writer = RecordWriter(self._file)
        try:
            self._write_all()
            self._writer.flush()
            publish(aside, self.path / name)
        except BaseException:
            self._file.close()
            aside.unlink(missing_ok=True)
            raise
        for path in old:
            path.unlink(missing_ok=True)

    def _write_all(self) -> None:
        """Write all that the record holds."""
        self._writer.write(
            Event(wall_time=self._start, file_version="brain.Event:2").SerializeToString()
        )
        self._write(0, [layout(self._domains, self._random)])
        evaluated = set(self.record.routing_steps())
        if (self.record.path / "metrics.jsonl").exists():
            for row in self.record.rows():
                step = row["step"]
                self.add(row, self.record.routing(step) if step in evaluated else None)
        if self.record.is_done():
            self.conclude(self.record.summary())

    def __enter__(self) -> "View":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def add(self, row: Mapping[str, Any], routing: Mapping[str, np.ndarray] | None = None) -> None:
        """Add a row of metrics, and the routing of an evaluation if the step has one.

        Rows up to the last step of the view are skipped, and so are values that are not finite.

        Args:
            row: `step`, and `group/name` keys with a number or a list of numbers. `time` is
                optional, in seconds since the start.
            routing: on the validation set: `counts` [layers, domains, experts] assignments.
                `coactivation` [layers, experts, experts] and `probability` [layers, bins] are
                optional, since old records lack them.
        """
        step = row["step"]
        if step <= self._last_step:
            return
        self._last_step = step
        self._last_time = self._start + float(row.get("time", step))
        values: list[Summary.Value] = []
        for key, value in row.items():
            if not _is_shown(key):
                continue
            if isinstance(value, list | tuple):
                values.append(_utilization(text(key), list(filter(is_finite, value))))
            elif is_finite(value):
                values.append(Summary.Value(tag=text(key), simple_value=value))
        if routing is not None:
            values += _probabilities(np.asarray(routing.get("probability", ())))
            if self._needs_images(step):
                values += self._pictures(step, routing)
        self._write(step, values)

    def close(self) -> None:
        """Close the file."""
        if not self._file.closed:
            self._file.close()

    def conclude(self, summary: Mapping[str, Any]) -> None:
        """Add what a run ended with, before its summary is written, and its row on HParams."""
        final = [
            Summary.Value(tag=FINAL_TAG.format(key), simple_value=summary[key])
            for key in final_metrics()
            if is_finite(summary.get(key))
        ]
        hparams = hparams_row(text(self.record.name), self._keys(), self._start)
        self._write(max(self._last_step, 0), [*final, hparams])
        self._writer.flush()
        os.fsync(self._file.fileno())

    def _keys(self) -> dict[str, Any]:
        """The keys that define the run, with its scope as a user types it."""
        named = {"scope": scope_of(self._science)} if "scope" in self._science else {}
        return {"arm": self._arm, **self._science, **named}

    def _write(self, step: int, values: Sequence[Summary.Value]) -> None:
        event = Event(wall_time=self._last_time, step=step, summary=Summary(value=values))
        self._writer.write(event.SerializeToString())
        self._writer.flush()  # so that TensorBoard shows a row at once

    def _needs_images(self, step: int) -> bool:
        """Whether this step is the first in its part of the run, of MAX_IMAGES parts."""
        if not isinstance(self._steps, int) or self._steps < 1:
            return True
        part = (MAX_IMAGES - 1) * step // self._steps
        is_new = part > self._pictured
        self._pictured = max(part, self._pictured)
        return is_new

    def _pictures(self, step: int, routing: Mapping[str, np.ndarray]) -> Iterator[Summary.Value]:
        about = f"step {step}, arm {self._arm}"
        for tag, picture in of_routing(routing, self._domains, about):
            yield _image(tag, picture)


def rebuild(record: Record) -> Path:
    """Write a run's view again from its record, then delete the old view.

    Returns:
        The directory of the view.
    """
    with View(record) as view:
        return view.path


def _shape(config: Mapping[str, Any]) -> tuple[int, int] | tuple[None, None]:
    """`model.num_experts` and `model.top_k`, or None twice if they are missing or impossible."""
    experts, top_k = config.get("model.num_experts"), config.get("model.top_k")
    if isinstance(experts, int) and isinstance(top_k, int) and 0 < top_k <= experts:
        return experts, top_k
    return None, None


def _is_shown(key: str) -> bool:
    """Whether a key of a row becomes a scalar or histogram. Undeclared metrics do."""
    metric = find(key)
    if metric is None or metric.scalars == "all":
        return "/" in key
    return metric.scalars == "whole" and key == metric.name


def _image(tag: str, picture: Picture) -> Summary.Value:
    image = Summary.Image(
        height=picture.height,
        width=picture.width,
        colorspace=3,
        encoded_image_string=picture.png,
    )
    return Summary.Value(tag=tag, image=image)


def _utilization(tag: str, values: Sequence[float]) -> Summary.Value:
    """A histogram of the loads of a layer's experts, with fewer bars for fewer experts."""
    bars = min(30, max(6, len(values) // 4))
    value = histogram_pb(tag, values, buckets=bars).value[0]
    value.metadata.display_name = f"Layer {tag.rsplit('/', 1)[-1]}: experts by load (even: 1)"
    return value


def _probabilities(counts: np.ndarray) -> Iterator[Summary.Value]:
    """A histogram for each layer, from counts [layers, bins] in even bins from 0 to 1."""
    for layer, of_layer in enumerate(counts):
        edges = np.linspace(0, 1, len(of_layer) + 1)
        buckets = np.stack([edges[:-1], edges[1:], of_layer], 1)
        title = f"Layer {layer}: likeliest expert's probability"
        yield Summary.Value(
            tag=f"router/likeliest/{layer}",
            tensor=tensor_util.make_tensor_proto(buckets, dtype=np.float64),
            metadata=histogram.create_summary_metadata(display_name=title, description=None),
        )


def _generation(path: Path) -> int:
    """How many views of the run there were up to this file; 0 for a foreign name."""
    number = path.name.removeprefix(PREFIX).split(".")[0]
    return int(number) if number.isdecimal() else 0


def _epoch_seconds(iso: object) -> float:
    """An ISO 8601 time in epoch seconds, UTC if it has no zone; 0 for anything else."""
    try:
        moment = datetime.fromisoformat(str(iso))
    except ValueError:
        return 0.0
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()

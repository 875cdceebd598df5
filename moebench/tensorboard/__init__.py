"""A run as TensorBoard shows it: a view made from the record, and made again whenever it is lost.

`<run>/tensorboard/` holds one event file. Scalars keep the names of the metrics; the load of each
layer's experts and the routers' probabilities are histograms; an evaluation adds pictures: of the
loads, of which experts meet, and for each layer of which experts serve which domain. A layout of
the page Custom Scalars asks four questions of them, in the order in which a reader asks: is it
learning, is it balanced, does it specialise, what does it cost? A run that is done also has a row
of the page HParams: what defines its arm, beside its final metrics.

Nothing here is the record, and nothing here imports torch. Event times come from the record, so
that two views of one record are equal byte by byte.
"""

# protobuf makes its classes at import, where pyright does not see them.
# pyright: reportAttributeAccessIssue=false

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
from moebench.disk import publish
from moebench.records import Record
from moebench.tensorboard.layout import FINAL_TAG, final, layout, session
from moebench.tensorboard.pictures import Picture, heatmap, loads, partners
from moebench.tensorboard.text import is_finite, text

MOST_IMAGES = 5  # of each picture in a run: the first, the last and some in between
PREFIX, SUFFIX = "events.out.tfevents.", ".moebench"


class View:
    """The event file of one run, which `add` extends as the run goes on.

    Opening it makes the view again from what the record holds by then, so that it never goes on
    from the torn or overlong file of a run that was interrupted. A record has one writer: do not
    open the view of a run that another process trains.

    Args:
        record: of a run that has begun (it has a manifest).

    Raises:
        RecordError: the record cannot be read.
        OSError: the view cannot be written; the old one is then still there.
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
        self._pictured = -1  # the part of the run, of MOST_IMAGES, that has its images
        self._concluded = False

        self.path.mkdir(exist_ok=True)
        old = [path for path in self.path.iterdir() if "tfevents" in path.name]
        # A new name, since TensorBoard goes on reading what it opened under the old one.
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
        """Write what the record holds by now."""
        self._writer.write(
            Event(wall_time=self._start, file_version="brain.Event:2").SerializeToString()
        )
        self._write(0, [layout(self._domains, self._random)])
        evaluated = set(self.record.routing_steps())
        if (self.record.path / "metrics.jsonl").exists():
            for row in self.record.rows():
                step = row["step"]
                self.add(row, self.record.routing(step) if step in evaluated else None)
        self._conclude()

    def __enter__(self) -> "View":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def add(self, row: Mapping[str, Any], routing: Mapping[str, np.ndarray] | None = None) -> None:
        """Show one row of metrics, and an evaluation's routing if there was one.

        A row of a step that the view already shows, or of an earlier one, is left out. So are
        values that are not finite, as the record leaves them out.

        Args:
            row: `step`, and `group/name` keys with a number or a list of them; `time`, if it is
                there, is in seconds since the start.
            routing: of a validation set; `counts` [layers, domains, experts] assignments, and, as
                far as the record has them, `coactivation` [layers, experts, experts] and
                `probability` [layers, bins].
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
            if self._is_due(step):
                values += self._pictures(step, routing)
        self._write(step, values)

    def close(self) -> None:
        """End the view. A run that is done by now gets its row of HParams first."""
        if not self._file.closed:
            self._conclude()
            self._file.close()

    def _conclude(self) -> None:
        if self._concluded or not self.record.is_done():
            return
        self._concluded = True
        summary = self.record.summary()
        last = [
            Summary.Value(tag=FINAL_TAG.format(key), simple_value=summary[key])
            for key in final()
            if is_finite(summary.get(key))
        ]
        arm = {"arm": self._arm, **self._science}
        compared = session(text(self.record.name), arm, self._start)
        self._write(max(self._last_step, 0), [*last, compared])

    def _write(self, step: int, values: Sequence[Summary.Value]) -> None:
        event = Event(wall_time=self._last_time, step=step, summary=Summary(value=values))
        self._writer.write(event.SerializeToString())
        self._writer.flush()  # a row shows as soon as it is there

    def _is_due(self, step: int) -> bool:
        """Whether the run has come far enough since its last images to deserve new ones."""
        if not isinstance(self._steps, int) or self._steps < 1:
            return True
        part = (MOST_IMAGES - 1) * step // self._steps
        due = part > self._pictured
        self._pictured = max(part, self._pictured)
        return due

    def _pictures(self, step: int, routing: Mapping[str, np.ndarray]) -> Iterator[Summary.Value]:
        counts = np.asarray(routing["counts"])
        names = self._domains
        if len(names) != counts.shape[1]:
            names = [str(index) for index in range(counts.shape[1])]
        about = f"step {step}, arm {self._arm}"
        # each domain weighs the same, however many of its sequences there are
        total = counts.sum(-1, keepdims=True)
        shares = np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)
        picture = loads(shares.sum(1), "Load of the experts", about)
        yield _image("load/experts", picture)
        together = np.asarray(routing.get("coactivation", ()))
        if together.ndim == 3 and (together.sum(2) > together.diagonal(axis1=1, axis2=2)).any():
            picture = partners(together, counts, "Experts that meet in a token", about)
            yield _image("specialization/partners", picture)
        for layer, each in enumerate(counts):
            title = f"Layer {layer}: where a domain's tokens go"
            picture = heatmap(each, names, title, about)
            yield _image(f"specialization/domain/{layer}", picture)


def rebuild(record: Record) -> Path:
    """Make a run's view again from its record alone, and only then take the old one away.

    Returns:
        The view's directory.
    """
    with View(record) as view:
        return view.path


def _shape(config: Mapping[str, Any]) -> tuple[int, int] | tuple[None, None]:
    """The numbers of experts and of a token's experts; None if the config is not one of an MoE."""
    experts, top_k = config.get("model.num_experts"), config.get("model.top_k")
    if isinstance(experts, int) and isinstance(top_k, int) and 0 < top_k <= experts:
        return experts, top_k
    return None, None


def _is_shown(key: str) -> bool:
    """Whether TensorBoard shows a key of a row; it shows metrics that nobody declared, too."""
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
    """A histogram of a layer's experts, of few bars where they are few."""
    bars = min(30, max(6, len(values) // 4))
    value = histogram_pb(tag, values, buckets=bars).value[0]
    value.metadata.display_name = f"Layer {tag.rsplit('/', 1)[-1]}: experts by load (even: 1)"
    return value


def _probabilities(counts: np.ndarray) -> Iterator[Summary.Value]:
    """A histogram a layer, from counts [layers, bins] of even bins from 0 to 1."""
    for layer, each in enumerate(counts):
        ends = np.linspace(0, 1, len(each) + 1)
        buckets = np.stack([ends[:-1], ends[1:], each], 1)
        title = f"Layer {layer}: likeliest expert's probability"
        yield Summary.Value(
            tag=f"router/likeliest/{layer}",
            tensor=tensor_util.make_tensor_proto(buckets, dtype=np.float64),
            metadata=histogram.create_summary_metadata(display_name=title, description=None),
        )


def _generation(path: Path) -> int:
    number = path.name.removeprefix(PREFIX).split(".")[0]
    return int(number) if number.isdecimal() else 0


def _epoch_seconds(iso: object) -> float:
    """A moment in ISO 8601 as epoch seconds, in UTC if it names no zone; 0 if it is none."""
    try:
        moment = datetime.fromisoformat(str(iso))
    except ValueError:
        return 0.0
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()

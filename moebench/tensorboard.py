"""A run as TensorBoard shows it: a view made from the record, and made again whenever it is lost.

`<run>/tensorboard/` holds one event file. Scalars keep the names of the metrics; the load of each
layer's experts is a histogram; an evaluation adds a heatmap a layer of which experts serve which
domain. A layout of the page Custom Scalars asks four questions of them, in the order in which a
reader asks: is it learning, is it balanced, does it specialise, what does it cost? A run that is
done also has a row of the page HParams: what defines its arm, beside its final metrics.

Nothing here is the record, and nothing here imports torch. Event times come from the record, so
that two views of one record are equal byte by byte.
"""

# protobuf makes its classes at import, where pyright does not see them.
# pyright: reportAttributeAccessIssue=false

import io
import json
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as custom_scalar
from tensorboard.plugins.histogram.summary_v2 import histogram_pb
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from moebench.records import Record

# What the four questions are answered with: title of a chart -> metric.
QUESTIONS: dict[str, dict[str, str]] = {
    "Is it learning?": {
        "Training loss, nats per token": "train/loss",
        "Validation loss, nats per token, all domains": "valid/nats",
        "Validation perplexity, all domains": "valid/ppl",
    },
    "Is it balanced?": {
        "MaxVio in a micro-batch (excess load; even: 0)": "load/max_vio_micro",
        "MaxVio in a whole step (excess load; even: 0)": "load/max_vio_batch",
        "MaxVio in validation (excess load; even: 0)": "load/max_vio_global",
        "Balance loss in a micro-batch (even: 1)": "train/balance_loss_micro",
        "Balance loss in a whole step (even: 1)": "train/balance_loss_global",
        "Entropy of the load: exp(H) / experts (even: 1)": "load/entropy",
        "Dead experts: chosen by no token": "load/dead_experts",
    },
    "Does it specialise?": {
        "Mutual information of expert and domain, bits": "specialization/domain",
        "Router probability of the chosen experts": "router/topk_mass",
    },
    "What does it cost?": {
        "Tokens per second": "speed/tokens_per_second",
        "Seconds per step": "speed/step_seconds",
        "Peak memory, bytes": "memory/peak_bytes",
    },
}
# One more chart a domain, at the end of the first question.
DOMAIN_TITLE, DOMAIN_TAG = "Validation perplexity: {}", "valid/ppl/{}"

# HParams shows five metrics at first, by alphabet: these are all of `final/`, which sorts first.
FINAL = (
    "load/max_vio_global",
    "load/max_vio_micro",
    "specialization/domain",
    "train/loss",
    "valid/ppl",
)

# No reported number comes from `tune/`; of a domain, perplexity alone says it all.
LEFT_OUT = ("tune/", "valid/nats/", "valid/bits_per_byte/")
MOST_IMAGES = 10  # a layer, since TensorBoard shows no more
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
        self._arm = _text(manifest.get("arm", record.name))
        self._domains = [_text(name) for name in manifest.get("domains") or ()]
        self._science: dict[str, Any] = manifest.get("science") or {}
        self._start = self._last_time = _epoch_seconds(manifest.get("start"))
        self._last_step = -1
        self._steps = record.config().get("train.steps")
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
            os.fsync(self._file.fileno())
            os.replace(aside, self.path / name)
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
        self._write(0, [_layout(self._domains)])
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
            routing: of a validation set; `counts` [layers, domains, experts] assignments.
        """
        step = row["step"]
        if step <= self._last_step:
            return
        self._last_step = step
        self._last_time = self._start + float(row.get("time", step))
        values: list[Summary.Value] = []
        for key, value in row.items():
            if "/" not in key or key.startswith(LEFT_OUT):
                continue
            if isinstance(value, list | tuple):
                values += histogram_pb(_text(key), list(filter(_is_finite, value))).value
            elif _is_finite(value):
                values.append(Summary.Value(tag=_text(key), simple_value=value))
        if routing is not None and self._is_due(step):
            values += self._heatmaps(step, np.asarray(routing["counts"]))
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
        final = [
            Summary.Value(tag=f"final/{key}", simple_value=summary[key])
            for key in FINAL
            if _is_finite(summary.get(key))
        ]
        arm = {"arm": self._arm, **self._science}
        session = _session(_text(self.record.name), arm, self._start)
        self._write(max(self._last_step, 0), [*final, session])

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

    def _heatmaps(self, step: int, counts: np.ndarray) -> Iterator[Summary.Value]:
        names = self._domains
        if len(names) != counts.shape[1]:
            names = [str(index) for index in range(counts.shape[1])]
        for layer, each in enumerate(counts):
            title = f"Layer {layer}, step {step}, arm {self._arm}: where a domain's tokens go"
            png, (height, width) = heatmap(each, names, title)
            image = Summary.Image(
                height=height, width=width, colorspace=3, encoded_image_string=png
            )
            yield Summary.Value(tag=f"specialization/domain/{layer}", image=image)


def rebuild(record: Record) -> Path:
    """Make a run's view again from its record alone, and only then take the old one away.

    Returns:
        The view's directory.
    """
    with View(record) as view:
        return view.path


def heatmap(
    counts: np.ndarray, domains: Sequence[str], title: str
) -> tuple[bytes, tuple[int, int]]:
    """Draw the share of each domain's assignments that goes to each expert.

    Experts keep their true index but stand in the order of the domain that uses them most, so that
    specialisation shows as a diagonal. White is even, 1 / experts; blue is less, red is more, and
    the darkest red is four times even or beyond, in every image.

    Args:
        counts: [domains, experts] assignments of one layer on the validation set.

    Returns:
        A PNG, and its height and width in pixels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    num_domains, num_experts = counts.shape
    even, most = 1 / num_experts, 4 / num_experts
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)
    known = np.nan_to_num(share)
    order = np.lexsort((-known.max(axis=0), known.argmax(axis=0)))
    names = [_line(name, 20) for name in domains]

    # Laid out by hand, in inches: matplotlib's own layout takes longer than all the drawing.
    left, bottom, right, top = 0.5 + 0.075 * max(map(len, names)), 0.5, 1.2, 0.32
    across = min(max(0.24 * num_experts, 3.4), 9.0)
    up = min(max(0.2 * num_domains, 2.1), 8.0)
    width, height = left + across + right, bottom + up + top
    figure = Figure(figsize=(width, height), dpi=120)
    axes = figure.add_axes((left / width, bottom / height, across / width, up / height))
    stops = [(0.0, "#7fb2d9"), (0.25, "#ffffff"), (0.5, "#f08a62"), (1.0, "#7a0019")]
    shades = LinearSegmentedColormap.from_list("share", stops)
    axes.set_facecolor("0.6")  # a domain without assignments
    image = axes.imshow(share[:, order], cmap=shades, vmin=0, vmax=most, aspect="auto")
    figure.text(
        0.01, 1 - 0.22 / height, _line(title, int(12 * width)), fontsize=9, parse_math=False
    )
    axes.set_xlabel("expert, ordered by the domain that uses it most", fontsize=9)
    axes.set_ylabel("domain", fontsize=9)
    every = math.ceil(num_experts / 64)
    axes.set_xticks(range(0, num_experts, every), [str(each) for each in order[::every]])
    axes.set_yticks(range(num_domains), names, parse_math=False)
    axes.tick_params(length=0, labelsize=8 if num_experts <= 32 else 6)

    place = ((left + across + 0.12) / width, bottom / height, 0.14 / width, up / height)
    bar = figure.colorbar(image, cax=figure.add_axes(place), extend="max")
    times = (0, 1, 2, 3, 4)
    labels = [f"even: 1/{num_experts}" if each == 1 else f"{each * even:.1%}" for each in times]
    bar.set_ticks([each * even for each in times], labels=labels, fontsize=8)
    bar.ax.axhline(even, color="black", linewidth=1)
    bar.set_label("share of the domain's assignments", fontsize=8)

    canvas, png = FigureCanvasAgg(figure), io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes, which is no reason to warn.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        canvas.print_png(png)
    pixels = canvas.get_width_height()
    return png.getvalue(), (pixels[1], pixels[0])


def _layout(domains: Sequence[str]) -> Summary.Value:
    """The page Custom Scalars. TensorBoard merges the layouts of all runs, chart by chart."""
    layout = layout_pb2.Layout()
    for question, charts in QUESTIONS.items():
        if question == "Is it learning?":
            each = {DOMAIN_TITLE.format(name): DOMAIN_TAG.format(name) for name in domains}
            charts = charts | each
        category = layout.category.add(title=question)
        for title, tag in charts.items():
            chart = category.chart.add(title=title)
            chart.multiline.tag.append(f"{re.escape(tag)}$")  # TensorBoard wants a pattern
    return Summary.Value(
        tag=custom_scalar.CONFIG_SUMMARY_TAG,
        tensor=TensorProto(dtype=DT_STRING, string_val=[layout.SerializeToString()]),
        metadata=custom_scalar.create_summary_metadata(),
    )


def _session(name: str, science: Mapping[str, Any], start: float) -> Summary.Value:
    """A row of the page HParams; `start` in epoch seconds. It takes scalars and words alone."""
    plain = {_text(key): _plain(value) for key, value in science.items()}
    # Under its own name, so that no run is averaged with another.
    value = hparams_pb(plain, trial_id=name, start_time_secs=start).value[0]
    plugin = value.metadata.plugin_data
    # A map of protobuf has no order of its own.
    content = HParamsPluginData.FromString(plugin.content).SerializeToString(deterministic=True)
    plugin.content = content
    return value


def _plain(value: object) -> bool | float | str:
    """A number or word as it is; null, a list or a table as a word, as one types it."""
    if isinstance(value, bool | int | float) and _is_finite(value):
        return value
    return _text(value if isinstance(value, str) else json.dumps(value).replace('"', ""))


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


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _text(value: object) -> str:
    """A name as protobuf and fonts take it: half of a surrogate pair is no text to either."""
    return str(value).encode(errors="replace").decode()


def _line(name: str, most: int) -> str:
    line = "".join(each if each.isprintable() else "?" for each in name)
    return line if len(line) <= most else f"{line[: most - 1]}…"

"""The pages by which TensorBoard compares runs: Custom Scalars, its first page, and HParams."""

# protobuf creates its classes at import, so pyright does not know them.
# pyright: reportAttributeAccessIssue=false

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as custom_scalar
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.plugins.hparams.summary_v2 import hparams_pb

from moebench.catalogue import METRICS
from moebench.tensorboard.text import is_finite, text

DOMAINS = "And in each domain?"  # the last heading, with a chart per domain
FINAL_TAG = "Final/{}"
HASH = r"\b([0-9a-f]{8})[0-9a-f]{24,}\b"  # whose first digits tell data apart


def final_metrics() -> list[str]:
    """The metrics of the page HParams.

    By default the page shows the first five tags in alphabetical order. These come first, because
    the capital letter of FINAL_TAG sorts before small letters.
    """
    return sorted(metric.name for metric in METRICS.values() if metric.hparam)


def charts(domains: Sequence[str], random: Mapping[str, float]) -> dict[str, dict[str, str]]:
    """The charts of the page Custom Scalars: heading -> title -> the tag that it shows.

    Args:
        domains: their names.
        random: metric -> its value under random routing.
    """
    most = math.log2(len(domains)) if len(domains) > 1 else None
    tags: dict[str, dict[str, str]] = {}
    for metric in METRICS.values():
        if metric.chart:
            title = metric.title(random.get(metric.name), most)
            tags.setdefault(metric.question, {})[title] = metric.name
    tags[DOMAINS] = {
        metric.part_chart.format(part=domain): f"{metric.name}/{domain}"
        for metric in METRICS.values()
        if metric.part_chart
        for domain in domains
    }
    return tags


def layout(domains: Sequence[str], random: Mapping[str, float]) -> Summary.Value:
    """The layout of the page Custom Scalars. TensorBoard merges the layouts of all runs.

    Args: as for `charts`.
    """
    page = layout_pb2.Layout()
    for heading, tags in charts(domains, random).items():
        category = page.category.add(title=heading)
        for title, tag in tags.items():
            chart = category.chart.add(title=title)
            chart.multiline.tag.append(f"{re.escape(tag)}$")  # TensorBoard takes a pattern
    return Summary.Value(
        tag=custom_scalar.CONFIG_SUMMARY_TAG,
        tensor=TensorProto(dtype=DT_STRING, string_val=[page.SerializeToString()]),
        metadata=custom_scalar.create_summary_metadata(),
    )


def hparams_row(name: str, science: Mapping[str, Any], start: float) -> Summary.Value:
    """A run's row on the page HParams.

    Args:
        name: of the run.
        science: the keys that define it.
        start: in epoch seconds.
    """
    plain = {text(key): _plain(value) for key, value in science.items()}
    # the run's name as its trial, so that TensorBoard averages no runs
    value = hparams_pb(plain, trial_id=name, start_time_secs=start).value[0]
    plugin = value.metadata.plugin_data
    # the entries of a protobuf map have no fixed order
    content = HParamsPluginData.FromString(plugin.content).SerializeToString(deterministic=True)
    plugin.content = content
    return value


def _plain(value: object) -> bool | float | str:
    """A value that HParams takes: numbers and texts, anything else as typed YAML; hashes cut."""
    if isinstance(value, bool | int | float) and is_finite(value):
        return value
    words = value if isinstance(value, str) else json.dumps(value).replace('"', "")
    return re.sub(HASH, r"\1", text(words))

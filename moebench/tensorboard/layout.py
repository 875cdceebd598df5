"""The first page, Custom Scalars, and the page HParams: what TensorBoard compares runs by."""

# protobuf makes its classes at import, where pyright does not see them.
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

DOMAINS = "And in each domain?"  # the last heading, with a chart a domain
FINAL_TAG = "Final/{}"


def final() -> list[str]:
    """The metrics of the page HParams.

    It shows five metrics at first, in alphabetical order: these, because the capital of FINAL_TAG
    sorts before small letters.
    """
    return sorted(each.name for each in METRICS.values() if each.hparam)


def charts(domains: Sequence[str], random: Mapping[str, float]) -> dict[str, dict[str, str]]:
    """The charts of the page Custom Scalars: heading -> title -> the tag that it shows.

    Args:
        domains: their names.
        random: metric -> its value under random routing.
    """
    most = math.log2(len(domains)) if len(domains) > 1 else None
    made: dict[str, dict[str, str]] = {}
    for each in METRICS.values():
        if each.chart:
            title = each.title(random.get(each.name), most)
            made.setdefault(each.question, {})[title] = each.name
    made[DOMAINS] = {
        each.part_chart.format(part=name): f"{each.name}/{name}"
        for each in METRICS.values()
        if each.part_chart
        for name in domains
    }
    return made


def layout(domains: Sequence[str], random: Mapping[str, float]) -> Summary.Value:
    """The page Custom Scalars. TensorBoard merges the layouts of all runs, chart by chart.

    Args: as for `charts`.
    """
    made = layout_pb2.Layout()
    for heading, tags in charts(domains, random).items():
        category = made.category.add(title=heading)
        for title, tag in tags.items():
            chart = category.chart.add(title=title)
            chart.multiline.tag.append(f"{re.escape(tag)}$")  # TensorBoard wants a pattern
    return Summary.Value(
        tag=custom_scalar.CONFIG_SUMMARY_TAG,
        tensor=TensorProto(dtype=DT_STRING, string_val=[made.SerializeToString()]),
        metadata=custom_scalar.create_summary_metadata(),
    )


def session(name: str, science: Mapping[str, Any], start: float) -> Summary.Value:
    """A row of the page HParams; `start` in epoch seconds. It takes scalars and words alone."""
    plain = {text(key): _plain(value) for key, value in science.items()}
    # Under its own name, so that no run is averaged with another.
    value = hparams_pb(plain, trial_id=name, start_time_secs=start).value[0]
    plugin = value.metadata.plugin_data
    # A map of protobuf has no order of its own.
    content = HParamsPluginData.FromString(plugin.content).SerializeToString(deterministic=True)
    plugin.content = content
    return value


def _plain(value: object) -> bool | float | str:
    """A number or word as it is; null, a list or a table as a word, as one types it."""
    if isinstance(value, bool | int | float) and is_finite(value):
        return value
    return text(value if isinstance(value, str) else json.dumps(value).replace('"', ""))

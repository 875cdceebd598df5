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

from moebench.tensorboard.text import is_finite, text

# What the four questions are answered with: title of a chart -> metric. {0} in a title is what the
# metric would be under random routing, {1} what it is if each domain has experts of its own.
QUESTIONS: dict[str, dict[str, str]] = {
    "Is it learning?": {
        "Training loss, nats per token": "train/loss",
        "Validation loss, nats per token, all domains": "valid/nats",
        "Validation perplexity, all domains": "valid/ppl",
    },
    "Is it balanced?": {
        "MaxVio in a micro-batch: excess load of the fullest expert (even: 0{0})": (
            "load/max_vio_micro"
        ),
        "MaxVio in a whole step (even: 0{0})": "load/max_vio_batch",
        "MaxVio in validation (even: 0{0})": "load/max_vio_global",
        "Balance loss in a micro-batch (even: 1)": "train/balance_loss_micro",
        "Balance loss in a whole step (even: 1)": "train/balance_loss_global",
        "Entropy of the load: exp(H) / experts (even: 1{0})": "load/entropy",
        "Dead experts: share that no token of a step chose": "load/dead_experts",
    },
    "Does it specialise?": {
        "What an expert tells of the domain, bits (nothing: 0{1})": "specialization/domain",
        "The same, given the token: more than vocabulary, bits (nothing: 0)": (
            "specialization/domain_given_token"
        ),
        "Router probability of the chosen experts (all: 1{0})": "router/topk_mass",
        "Tokens whose experts changed since the evaluation before (none: 0{0})": "router/changed",
    },
    "What does it cost?": {
        "Expert parallel: slowest of the virtual ranks over the mean (even: 1{0})": "ep/slowdown",
        "The same, experts placed by recent load (even: 1{0})": "ep/slowdown_greedy",
        "The same, and the fullest experts copied (even: 1)": "ep/slowdown_redundant",
        "Dropped, or would be at a capacity of 1.25 (share; even: 0{0})": "load/drop_rate",
        "Tokens per second": "speed/tokens_per_second",
        "Seconds per step": "speed/step_seconds",
        "Peak memory, bytes": "memory/peak_bytes",
    },
}
# Last, one more chart a domain.
DOMAINS = "And in each domain?"
DOMAIN_TITLE, DOMAIN_TAG = "Validation perplexity: {}", "valid/ppl/{}"

# HParams shows five metrics at first, by alphabet: these, since capitals sort before small letters.
FINAL_TAG = "Final/{}"
FINAL = (
    "ep/slowdown",
    "load/max_vio_global",
    "load/max_vio_micro",
    "specialization/domain",
    "valid/ppl",
)


def layout(domains: Sequence[str], random: Mapping[str, float]) -> Summary.Value:
    """The page Custom Scalars. TensorBoard merges the layouts of all runs, chart by chart.

    Args:
        domains: their names.
        random: of some metrics, the value under random routing.
    """
    made = layout_pb2.Layout()
    most = f", all: {math.log2(len(domains)):.2g}" if len(domains) > 1 else ""
    each = {DOMAIN_TITLE.format(name): DOMAIN_TAG.format(name) for name in domains}
    for question, charts in {**QUESTIONS, DOMAINS: each}.items():
        category = made.category.add(title=question)
        for title, tag in charts.items():
            floor = f", random routing: {random[tag]:.3g}" if tag in random else ""
            title = title.replace("{0}", floor).replace("{1}", most)
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

"""The catalogue declares what runs write, and every view reads it from there."""

import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

import moebench.train.measure as measure
from moebench.catalogue import METRICS, Column, Metric, find, is_settled, random_values, taken
from moebench.catalogue.metrics_page import metrics_page
from moebench.config.compose import Composer
from moebench.data.corpus import prepare
from moebench.experiment import run_experiment
from moebench.inspect import inspect_run
from moebench.inspect.render import show
from moebench.records import Record
from moebench.report import make_report
from moebench.train.ranks import Ranks

RUNS = (
    "balance.terms=[{scope:global},{scope:micro,weight:0.1,start:1}] balance.estimator_error=true "
    "data.heldout=[shapes] train.eval_every=3",
    "method=bias router=sigmoid",
    "method=expert_choice",
    "method=remoe router=relu",
    "router=growing run.record_selections=true",
    "router=replay router.replay=RUN",  # the one before
)
FROM_ELSEWHERE = {"balance/allreduce_bytes", "balance/allreduce_seconds", "method"}


def train(place: Path, text_folder: Path, words: str) -> Record:
    small = [
        *("model=smoke", "train.steps=6", "global_bsz=8", "seq_len=32", "data.valid_sequences=4"),
        *("data=folder", f"data.path={text_folder}", "run.device=cpu", "run.threads=1"),
    ]
    config = Composer().compose([*small, *words.split()])
    return run_experiment(config, prepare(config.data), place)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, text_folder: Path) -> dict[str, set[str]]:
    """Every key that the rows and the summaries of some runs hold -> the types of its values."""
    types: dict[str, set[str]] = {}
    path = ""
    for words in RUNS:
        record = train(
            tmp_path_factory.mktemp("runs"), text_folder, words.replace("RUN", str(path))
        )
        path = record.path
        for row in (*record.rows(), record.summary()):
            for key, value in row.items():
                if "/" in key:
                    types.setdefault(key, set()).add(type(value).__name__)
    return types


def test_every_key_that_runs_write_is_declared(written: dict[str, set[str]]) -> None:
    assert [key for key in written if find(key) is None] == []


def test_every_declared_metric_is_written(written: dict[str, set[str]]) -> None:
    wanted = {metric.name for metric in METRICS.values() if metric.whole}
    wanted |= {f"{metric.name}/" for metric in METRICS.values() if metric.per}
    found = {metric.name for key in written if (metric := METRICS.get(key))}
    found |= {f"{m.name}/" for key in written if (m := find(key)) and key != m.name}
    assert {name.rstrip("/") for name in wanted - found} == FROM_ELSEWHERE
    assert Ranks(size=2).pop_allreduce_cost(1).keys() == FROM_ELSEWHERE - {"method"}
    assert find("method/of_a_plugin") is METRICS["method"]


def test_lists_are_what_no_summary_holds(written: dict[str, set[str]]) -> None:
    lists = {key for key, types in written.items() if types == {"list"}}
    assert lists == {key for key in written if taken(key) == "never"}


def test_a_key_is_found_by_its_whole_name_or_by_its_parts() -> None:
    for key, name in {
        "valid/ppl": "valid/ppl",
        "valid/ppl/": "valid/ppl",
        "valid/ppl/a/../b": "valid/ppl",
        "valid/nats_se/english": "valid/nats_se",
        "load/layers/max_vio_micro": "load/layers/max_vio_micro",
        "load/utilization/0": "load/utilization",
        "forces/cosine/Global(size=16)": "forces/cosine",
        "method/bias_range": "method/bias_range",
        "method/other": "method",
    }.items():
        assert find(key) is METRICS[name], key
    for key in ("valid", "valid/other", "load/utilization", "train/loss/law", "method", "step", ""):
        assert find(key) is None, key


def test_a_summary_takes_the_last_evaluation_and_means_of_settled_steps() -> None:
    assert [taken(key) for key in ("valid/ppl/law", "train/loss", "of/nobody")] == [
        *("last", "mean", "mean")
    ]
    assert [step for step in range(1, 31) if is_settled(step, 30)] == [28, 29, 30]


def test_declarations_are_sound() -> None:
    for metric in METRICS.values():
        assert metric.meaning, metric.name
        assert metric.question, metric.name
        assert len(metric.inspected) <= 35, "a line of `inspect` fits 80 columns"
        assert metric.whole or metric.per
        assert (metric.taken == "first") == bool(metric.of)
        assert not metric.of or metric.of in METRICS
        assert metric.scalars != "whole" or metric.per
        assert not re.search(r"\{(?!random\}|most\})", metric.chart)
        assert metric.column is None or metric.column.heading.count("\n") < 2
    assert sum(metric.hparam for metric in METRICS.values()) == 5, "as HParams shows at first"


def test_random_values_are_those_that_the_run_knows() -> None:
    loads = {"micro": {"max_vio": 0.2, "cv": math.nan}, "batch": {"cv": math.inf, "gini": None}}
    values = random_values({"random_load": loads, "random_slowdown": 1.1}, 4, 2)
    assert values["load/max_vio_micro"] == 0.2
    assert values["ep/slowdown"] == values["ep/slowdown_greedy"] == 1.1
    assert values["router/changed"] == 1 - 1 / 6
    assert values["specialization/coactivation"] == pytest.approx(1 / 3)
    assert not values.keys() & {"load/cv", "load/gini", "ep/slowdown_redundant"}
    assert random_values({}) == {}


EXTRA = Metric(
    "load/spread",
    "largest less smallest load, over the mean",
    question="Is it balanced?",
    even=0,
    direction="lower",
    chart="Spread of the loads (even: 0)",
    hparam=True,
    inspected="largest less smallest (even: 0)",
    column=Column("load", "spread", 2),
)


@pytest.fixture
def extended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text_folder: Path) -> Record:
    """A run that computes one more metric, which is declared and mentioned nowhere else."""
    before = measure.batch_metrics

    def batch_metrics(routing: Any, micro_bsz: int) -> dict[str, torch.Tensor]:
        counts = routing.counts.sum(1).double()
        spread = (counts.amax(-1) - counts.amin(-1)) / counts.mean(-1)
        return {**before(routing, micro_bsz), EXTRA.name: spread.mean()}

    monkeypatch.setattr(measure, "batch_metrics", batch_metrics)
    monkeypatch.setitem(METRICS, EXTRA.name, EXTRA)
    return train(tmp_path / "runs", text_folder, "")


def test_one_declaration_shows_a_metric_in_every_view(extended: Record) -> None:
    value = extended.summary()[EXTRA.name]
    assert value == np.mean([row[EXTRA.name] for row in extended.rows() if row["step"] == 6])

    events = EventAccumulator(str(extended.path / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    assert {EXTRA.name, f"Final/{EXTRA.name}"} <= {*events.Tags()["scalars"]}
    tensor = events.Tensors("custom_scalars__config__")[0].tensor_proto
    page = layout_pb2.Layout.FromString(tensor.string_val[0])  # pyright: ignore
    [balanced] = [each for each in page.category if each.title == EXTRA.question]
    assert balanced.chart[-1].title == EXTRA.chart

    out = io.StringIO()
    show(inspect_run(extended.path), Console(file=out, width=80))
    assert re.search(rf"^  spread +[\d.]+ +{re.escape(EXTRA.inspected)} *$", out.getvalue(), re.M)

    report = make_report([extended.path.parent], metrics=[EXTRA.name]).render()
    assert EXTRA.name in report
    assert f"{value:.4g}" in report

    assert EXTRA.column is not None
    assert EXTRA.column.heading in make_report([extended.path.parent]).render()

    assert f"| `{EXTRA.name}` | {EXTRA.meaning} |" in metrics_page()

"""The view in TensorBoard says what the record says, and can be made again."""

import io
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto import event_pb2
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.util import tensor_util

from moebench.errors import RecordError
from moebench.records import Record
from moebench.tensorboard import MAX_IMAGES, View, rebuild
from moebench.tensorboard.layout import DOMAINS as DOMAIN_CHARTS
from moebench.tensorboard.layout import charts, final_metrics

DOMAINS = ["english", "python", "latex"]
LAYERS, EXPERTS, STEPS, BINS = 2, 4, 6, 20
EVERYTHING = {"scalars": 0, "images": 0, "tensors": 0}
CHARTED = [tag for tags in charts([], {}).values() for tag in tags.values()]
HOSTILE = ["$\\frac{", "a/../b", "c++ (.*)", "<b>é</b>\n", "漢字", "", "x" * 300]


def begin(path: Path, **manifest: Any) -> Record:
    record = Record(path)
    start = "2025-11-22T10:00:00+00:00"
    science = {"seed": 0, "scope": "group", "loss.balance": 0.1, "a": None, "b": [1, "x"]}
    science |= {"balance_bsz": 4, "micro_bsz": 4, "global_bsz": 32, "data": "0123abcd" * 8}
    record.begin(
        f"train:\n  steps: {STEPS}\n",
        {"arm": "micro", "seed": 0, "domains": DOMAINS, "start": start, "science": science}
        | manifest,
    )
    return record


def rows(
    last: int = STEPS, domains: list[str] = DOMAINS
) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray] | None]]:
    """A row a step, with an evaluation and its routing at every third."""
    for step in range(last + 1):
        random = np.random.default_rng(step)
        row: dict[str, Any] = {"step": step, "tune/nats": 2.0}
        row |= {tag: float(random.random()) for tag in CHARTED}
        if step % 3:
            yield {key: row[key] for key in row if not key.startswith("valid/")}, None
            continue
        row |= {f"valid/ppl/{name}": float(random.random()) for name in domains}
        row |= {f"valid/nats/{name}": 1.0 for name in domains}
        row |= {f"load/utilization/{i}": random.random(EXPERTS).tolist() for i in range(LAYERS)}
        yield (
            row,
            {
                "counts": random.integers(0, 99, (LAYERS, len(domains), EXPERTS)),
                "coactivation": random.integers(0, 99, (LAYERS, EXPERTS, EXPERTS)),
                "probability": random.integers(0, 99, (LAYERS, BINS)),
            },
        )


def write(record: Record, last: int = STEPS, domains: list[str] = DOMAINS) -> None:
    for row, routing in rows(last, domains):
        record.append(row)
        if routing is not None:
            record.save_routing(row["step"], routing)


def seal(record: Record) -> None:
    record.set_status("done", step=1, steps=1)
    record.seal({"status": "done", **dict.fromkeys(final_metrics(), 0.5)})


def event_file(record: Record) -> Path:
    (path,) = (record.path / "tensorboard").iterdir()
    return path


def read(record: Record) -> EventAccumulator:
    found = EventAccumulator(str(record.path / "tensorboard"), size_guidance=EVERYTHING)
    return found.Reload()


def events(record: Record) -> list[event_pb2.Event]:  # pyright: ignore
    raw = RawEventFileLoader(str(event_file(record))).Load()
    return [event_pb2.Event.FromString(event) for event in raw]  # pyright: ignore


def layout(record: Record) -> dict[str, dict[str, str]]:
    tensor = read(record).Tensors("custom_scalars__config__")[0].tensor_proto
    parsed = layout_pb2.Layout.FromString(tensor.string_val[0])  # pyright: ignore
    return {
        category.title: {chart.title: chart.multiline.tag[0] for chart in category.chart}
        for category in parsed.category
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Record:
    record = begin(tmp_path_factory.mktemp("made") / "run")
    write(record)
    seal(record)
    rebuild(record)
    return record


@pytest.fixture
def done(made: Record, tmp_path: Path) -> Record:
    """A run that is done, with its view, to do with as a test likes."""
    return Record(shutil.copytree(made.path, tmp_path / "run"))


def test_scalars_equal_the_rows(done: Record) -> None:
    found = read(done)
    wanted: dict[str, list[tuple[int, float]]] = {}
    for row in done.rows():
        for key, value in row.items():
            left_out = key == "step" or key.startswith(("tune/", "valid/nats/"))
            if not left_out and not isinstance(value, list):
                wanted.setdefault(key, []).append((row["step"], value))
    wanted |= {f"Final/{key}": [(STEPS, 0.5)] for key in final_metrics()}
    tags = sorted(found.Tags()["scalars"])
    assert tags == sorted(wanted)
    first = [f"Final/{key}" for key in final_metrics()]
    assert tags[: len(first)] == first, "which HParams shows at first"
    for key, points in wanted.items():
        seen = [(point.step, point.value) for point in found.Scalars(key)]
        assert seen == [(step, float(np.float32(value))) for step, value in points]


def test_histograms_hold_every_expert(done: Record) -> None:
    found = read(done)
    for layer in range(LAYERS):
        kept = found.Tensors(f"load/utilization/{layer}")
        assert [point.step for point in kept] == [0, 3, 6]
        for point, row in zip(kept, done.rows()[::3], strict=True):
            buckets = tensor_util.make_ndarray(point.tensor_proto)
            used = row[f"load/utilization/{layer}"]
            assert buckets[:, 2].sum() == EXPERTS
            assert (buckets[0, 0], buckets[-1, 1]) == (min(used), max(used))


def test_router_probabilities_are_histograms_of_the_kept_counts(done: Record) -> None:
    found = read(done)
    for layer in range(LAYERS):
        kept = found.Tensors(f"router/likeliest/{layer}")
        assert [point.step for point in kept] == [0, 3, 6]
        for point in kept:
            buckets = tensor_util.make_ndarray(point.tensor_proto)
            counts = done.routing(point.step)["probability"][layer]
            assert buckets[:, 2].tolist() == counts.tolist()
            assert buckets[:, :2].ravel() == pytest.approx(
                np.repeat(np.linspace(0, 1, BINS + 1), 2)[1:-1]
            )


def test_an_evaluation_draws_few_small_images(done: Record) -> None:
    found = read(done)
    tags = [f"specialization/domain/{layer}" for layer in range(LAYERS)]
    tags = ["load/experts", "specialization/partners", *tags]
    assert found.Tags()["images"] == tags
    for tag in tags:
        kept = found.Images(tag)
        assert [point.step for point in kept] == [0, 3, 6]
        for point in kept:
            image = Image.open(io.BytesIO(point.encoded_image_string))
            image.load()
            assert image.size == (point.width, point.height)
            assert len(point.encoded_image_string) < 100_000


def test_images_are_few(tmp_path: Path) -> None:
    record = begin(tmp_path / "run")
    record.begin("train:\n  steps: 100\n", record.manifest())
    counts = np.ones((1, len(DOMAINS), EXPERTS), dtype=np.int64)
    with View(record) as view:
        for step in range(101):
            view.add({"step": step}, {"counts": counts})
    steps = [point.step for point in read(record).Images("specialization/domain/0")]
    assert len(steps) == MAX_IMAGES
    assert (steps[0], steps[-1]) == (0, 100)


def test_the_layout_asks_four_questions_of_tags_that_exist(done: Record) -> None:
    found = layout(done)
    assert list(found) == [
        *("Is it learning?", "Is it balanced?", "Does it specialise?", "What does it cost?"),
        DOMAIN_CHARTS,
    ]
    tags = read(done).Tags()["scalars"]
    answered = [
        [tag for tag in tags if re.match(pattern, tag)]
        for charts in found.values()
        for pattern in charts.values()
    ]
    assert all(len(tags) == 1 for tags in answered)
    last = [tags[0] for tags in answered[-len(DOMAINS) :]]
    assert last == [f"valid/ppl/{name}" for name in DOMAINS]


def hparams(record: Record) -> dict[str, Any]:
    content = read(record).SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    data = plugin_data_pb2.HParamsPluginData.FromString(content)  # pyright: ignore
    assert data.session_start_info.group_name == record.name
    kept = data.session_start_info.hparams.items()
    return {key: getattr(value, value.WhichOneof("kind")) for key, value in kept}


def test_hparams_are_scalars_and_words_once_the_run_is_done(tmp_path: Path, done: Record) -> None:
    wanted = {"arm": "micro", "seed": 0, "scope": "micro", "loss.balance": 0.1, "data": "0123abcd"}
    wanted |= {"balance_bsz": 4, "micro_bsz": 4, "global_bsz": 32}
    assert hparams(done) == wanted | {"a": "null", "b": "[1, x]"}
    running = begin(tmp_path / "running")
    write(running)
    rebuild(running)
    assert not [tag for tag in read(running).Tags()["tensors"] if "hparams" in tag]


def test_times_come_from_the_record(tmp_path: Path) -> None:
    start = 1763805600.0  # 2025-11-22T10:00:00 UTC
    record = begin(tmp_path / "run")
    record.append({"step": 1, "time": 0.5, "train/loss": 1.0})
    record.append({"step": 2, "train/loss": 1.0})
    rebuild(record)
    assert [event.wall_time for event in events(record)] == [start, start, start + 0.5, start + 2]
    record.begin("train: {}\n", record.manifest() | {"start": "yesterday"})
    rebuild(record)
    assert [event.wall_time for event in events(record)] == [0.0, 0.0, 0.5, 2.0]


def test_rebuilt_views_and_the_live_one_are_equal(tmp_path: Path) -> None:
    record = begin(tmp_path / "run")
    with View(record) as view:
        for row, routing in rows():
            record.append(row)
            if routing is not None:
                record.save_routing(row["step"], routing)
            view.add(row, routing)
        seal(record)
        view.conclude(record.summary())
    live = event_file(record).read_bytes()
    parsed = events(record)
    rebuild(record)
    assert event_file(record).read_bytes() == live
    assert events(record) == parsed
    shutil.rmtree(record.path / "tensorboard")
    rebuild(record)
    assert event_file(record).read_bytes() == live
    assert record.damage() == []


def test_another_process_makes_the_same_view_without_torch(done: Record) -> None:
    code = (
        "import sys, pathlib; import moebench.tensorboard as view\n"
        "assert 'matplotlib' not in sys.modules\n"
        "from moebench.records import Record; view.rebuild(Record(pathlib.Path(sys.argv[1])))\n"
        "assert 'torch' not in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    before = event_file(done).read_bytes()
    subprocess.run([sys.executable, "-W", "error", "-c", code, str(done.path)], check=True)
    assert event_file(done).read_bytes() == before


def test_a_resumed_run_shows_no_step_twice(tmp_path: Path) -> None:
    record = begin(tmp_path / "run")
    for row, routing in rows(last=5):  # a process that is killed: its view is never closed
        record.append(row)
        if routing is not None:
            record.save_routing(row["step"], routing)
    with View(record):
        pass
    with open(event_file(record), "r+b") as file:
        file.truncate(os.path.getsize(file.name) - 7)
    record.cut(4)
    rebuild(record)
    with View(record) as view:
        for row, routing in rows():
            view.add(row, routing)  # steps up to 4 are there already
    found = read(record)
    assert [point.step for point in found.Scalars("train/loss")] == list(range(STEPS + 1))
    assert [point.step for point in found.Images("specialization/domain/0")] == [0, 3, 6]


def test_a_live_view_shows_each_row_at_once(tmp_path: Path) -> None:
    record = begin(tmp_path / "run")
    with View(record) as view:
        for row, _ in rows():
            view.add(row)
            assert read(record).Scalars("train/loss")[-1].step == row["step"]
    view.close()


def test_a_view_that_cannot_be_made_leaves_the_old_one(done: Record) -> None:
    before = event_file(done).read_bytes()
    path = done.path / "metrics.jsonl"
    path.write_text("broken\n" + path.read_text())
    with pytest.raises(RecordError, match=r"metrics.jsonl:1"):
        rebuild(done)
    assert event_file(done).read_bytes() == before


def test_values_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    record = begin(tmp_path / "run")
    bad = {"train/loss": math.nan, "train/grad_norm": math.inf, "valid/ppl": 2.0}
    row = {"step": 1, **bad, "load/utilization/0": [1.0, math.nan, 3.0], "load/utilization/1": []}
    record.append(row)
    with View(record) as view:
        view.add({**row, "step": 2})
    found = read(record)
    assert found.Tags()["scalars"] == ["valid/ppl"]
    for point in found.Tensors("load/utilization/0"):
        assert tensor_util.make_ndarray(point.tensor_proto)[:, 2].sum() == 2


def test_hostile_names_break_nothing(tmp_path: Path) -> None:
    arm = "".join(HOSTILE)
    record = begin(tmp_path / "run", arm=arm, domains=HOSTILE)
    write(record, last=0, domains=HOSTILE)
    seal(record)
    rebuild(record)
    found = read(record)
    clean = list(HOSTILE)
    patterns = list(layout(record)[DOMAIN_CHARTS].values())
    for name, pattern in zip(clean, patterns, strict=True):
        matched = [tag for tag in found.Tags()["scalars"] if re.match(pattern, tag)]
        assert matched == [f"valid/ppl/{name}"]
    assert len(found.Images("specialization/domain/1")) == 1
    assert hparams(record)["arm"] == arm


def test_random_routing_is_in_the_titles(tmp_path: Path) -> None:
    loads = {"micro": {"max_vio": 0.2239, "drop_rate": 0.01}}
    record = begin(tmp_path / "run", random_load=loads, random_slowdown=1.08)
    rebuild(record)
    titles = [title for charts in layout(record).values() for title in charts]
    assert not [title for title in titles if "{" in title]
    assert [
        title
        for title in titles
        if "micro-batch: excess" in title and "random routing: 0.224)" in title
    ]
    assert [title for title in titles if "slowest" in title and "random routing: 1.08)" in title]


def test_a_view_of_an_older_record_has_what_the_record_has(tmp_path: Path) -> None:
    record = begin(tmp_path / "run")
    for row, routing in rows(last=0):
        record.append(row)
        assert routing is not None
        record.save_routing(0, {"counts": routing["counts"]})
    rebuild(record)
    assert "specialization/partners" not in read(record).Tags()["images"]


def test_domains_that_do_not_match_are_numbered(tmp_path: Path) -> None:
    record = begin(tmp_path / "run", domains=["one"])
    write(record, last=0)
    rebuild(record)
    assert len(read(record).Images("specialization/domain/0")) == 1

"""Plots and the page: deterministic, self-contained, and safe whatever names hold."""

import html.parser
import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moebench.records import Record
from moebench.report import Report, make_report
from moebench.report.draw import heatmaps, plots
from moebench.report.draw.chart import Plot
from moebench.report.draw.curves import curves, differences
from moebench.report.draw.marks import POINTS, Axis
from moebench.report.infer.arms import Table
from moebench.report.infer.statistics import mean_interval
from moebench.report.paper.findings import paper_gaps
from moebench.report.read.frame import Frame
from tests.report.examples import HOSTILE

Make = Callable[..., Record]
GROUP = {"scope": "group", "global_bsz": 32}
ROWS = tuple(
    {"step": step, "train/loss": 5.0 - step / 100, "train/balance_loss_micro": 1.1}
    | ({"valid/nats": 2 - step / 1000, "specialization/domain": 0.1} if step % 100 == 0 else {})
    for step in range(0, 401, 20)
)
ARMS = {
    "sequence": GROUP | {"balance_bsz": 1},
    "micro": GROUP | {"balance_bsz": 4},
    "global-8": GROUP | {"balance_bsz": 8},
    "global": GROUP | {"balance_bsz": 32},
}
SWITCH = [
    {"scope": "group", "weight": 0.1, "stop": 200, "balance_bsz": 4},
    {"scope": "group", "weight": 0.1, "start": 200, "balance_bsz": 32},
]


def a_study(runs: Path, run: Make, arms: Mapping[str, Mapping[str, Any]], seeds: int = 3) -> None:
    rng = np.random.default_rng(0)
    for seed in range(seeds):
        for name, science in arms.items():
            own = {
                "load/max_vio_micro": 1 + rng.random(),
                "load/max_vio_global": 0.3 + rng.random() / 10,
                "specialization/domain": 0.2 + rng.random() / 10,
                "ep/slowdown": 1.2 + rng.random(),
            }
            run(
                runs,
                name,
                seed,
                1.6 + 0.01 * rng.random(),
                science=science,
                metrics=own,
                rows=ROWS,
                counts=rng.integers(1, 99, (3, 2, 16)),
                domains=["code", "law"],
                sequences=science.get("balance_bsz"),
            )


@pytest.fixture
def drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plots of a table are drawn once, whoever asks: that they never vary has its own test."""
    draw, drawn = plots.plots, dict[int, list[Plot]]()

    def made(table: Table, frame: Frame) -> list[Plot]:
        if id(table) not in drawn:
            drawn[id(table)] = draw(table, frame)
        return drawn[id(table)]

    monkeypatch.setattr(plots, "plots", made)


@pytest.fixture
def report(runs: Path, run: Make) -> Report:
    a_study(
        runs, run, {**ARMS, "micro to 200 + global from 200": {"terms": SWITCH, "global_bsz": 32}}
    )
    return make_report([runs])


def test_every_plot_that_has_something_is_made_the_same_each_time(report: Report) -> None:
    table = report.tables[0]
    first, second = report.plots(table), report.plots(table)
    names = [plot.name for plot in first]
    assert names == [
        *("differences", "cost", "specialisation", "curves", "curve-differences", "balance_bsz"),
        *("domains", "switches"),
    ]
    for one, other in zip(first, second, strict=True):
        assert one == other
        assert one.svg == other.svg
        assert ET.fromstring(one.svg).tag.endswith("svg")
        assert one.caption.endswith(".")
    assert first[0].png == second[0].png
    assert first[0].png.startswith(b"\x89PNG")


def test_scopes_over_weights_are_a_frontier(runs: Path, run: Make) -> None:
    rng = np.random.default_rng(0)
    for seed in range(3):
        for scope, size, off in (("micro", 4, 0.02), ("global", 32, 0.0)):
            for place, weight in enumerate((0.01, 0.05, 0.2, 0.5)):
                own = {"load/max_vio_global": 2.0 / 2**place * (1 + 0.01 * rng.random())}
                nats = 1.6 + seed + off + 0.01 * place + 1e-4 * rng.random()
                science = GROUP | {"balance_bsz": size, "loss.balance": weight}
                run(runs, scope, seed, nats, science=science, metrics=own, sequences=size)
    report = make_report([runs], baseline="micro loss.balance=0.05")
    assert "weights" in [plot.name for plot in report.plots(report.tables[0])]
    text = report.render()
    lines = [line.split() for line in text[text.index("over their weights") :].splitlines()]
    row = next(line for line in lines if line[:1] == ["global"])
    assert row[1] == "0.01"
    differences = [float(cell) for cell in row if re.fullmatch(r"-0\.\d{4}", cell)]
    assert differences == pytest.approx([-0.02, -0.02], abs=2e-3)


def test_the_papers_gap_is_that_of_global_and_micro_whatever_arms_there_are(
    runs: Path, run: Make
) -> None:
    bias = GROUP | {"scope": "none", "method.name": "bias"}
    micro = {"method.options": {"balance_bsz": 4.0}}
    a_study(runs, run, {"micro": ARMS["micro"], "bias": bias, "bias-4": bias | micro})
    (table,) = make_report([runs]).tables
    gaps = paper_gaps(table.bytes_per_token)
    assert gaps is not None
    assert table.bytes_per_token == pytest.approx(1)
    assert gaps == pytest.approx([math.log(8.167 / 8.038) / size for size in (4, 3, 5)])
    plot = plots.differences(table, make_report([runs]).frame)
    assert plot is not None
    assert "Grey: the paper's global against micro" in plot.caption
    other = plots.differences(make_report([runs], baseline="bias").tables[0], None)  # pyright: ignore
    assert other is not None
    assert "Grey" not in other.caption


def test_heatmaps_show_every_scope_before_other_weights_of_one(runs: Path, run: Make) -> None:
    arms = {
        f"{scope} loss.balance={weight}": {**ARMS[scope], "loss.balance": weight}
        for scope in ("micro", "global", "sequence")
        for weight in (0.05, 0.005, 0.5)
    }
    a_study(runs, run, arms, seeds=1)
    report = make_report([runs], baseline="micro loss.balance=0.05")
    plot = heatmaps.domains(report.tables[0], report.frame)
    assert plot is not None
    shown = [panel.spec["title"] for panel in plot.panels]
    assert len(shown) == heatmaps.MOST_HEATMAPS
    assert sorted(shown[:3]) == sorted(name for name in arms if name.endswith("=0.05"))


def test_damaged_routing_leaves_out_its_pictures_alone(runs: Path, run: Make) -> None:
    counts = np.ones((1, 2, 4), np.int64)
    for arm in ("micro", "global"):
        record = run(runs, arm, counts=counts, domains=["code", "law"])
    (record.path / "routing" / "step-400.npz").write_bytes(b"broken")
    report = make_report([runs], runs_dir=runs)
    plot = heatmaps.domains(report.tables[0], report.frame)
    assert plot is not None
    assert [panel.spec["title"] for panel in plot.panels] == ["micro"]
    assert "routing/step-400.npz: was changed" in report.page("moebench report")


def test_a_heatmap_says_how_many_times_even_a_share_is(runs: Path, run: Make) -> None:
    counts = np.array([[[60, 20, 20, 0], [10, 10, 10, 10]]])
    run(runs, "micro", counts=counts, domains=["code", "law"])
    report = make_report([runs])
    plot = heatmaps.domains(report.tables[0], report.frame)
    assert plot is not None
    cells = plot.panels[0].spec["data"]["values"]
    code = {cell["expert"]: cell for cell in cells if cell["domain"] == "code"}
    assert [code[expert]["times"] for expert in (1, 2, 3, 4)] == pytest.approx([2.4, 0.8, 0.8, 0])
    assert code[1]["log"] == pytest.approx(math.log2(2.4), rel=1e-5)
    assert code[4]["log"] == -heatmaps.MOST_TIMES
    assert {cell["log"] for cell in cells if cell["domain"] == "law"} == {0}


def test_curves_are_means_over_seeds_and_differences_are_paired(runs: Path, run: Make) -> None:
    values = {
        arm: np.array([[5.0, 2.0 + 0.1 * seed + off * seed, 1.5 + off] for seed in range(3)])
        for arm, off in (("micro", 0.0), ("global", 0.02))
    }
    for arm, of_arm in values.items():
        for seed, nats in enumerate(of_arm):
            rows = [{"step": 10 * i, "valid/nats": float(v)} for i, v in enumerate(nats)]
            run(runs, arm, seed, rows=rows)
    report = make_report([runs], baseline="micro")
    over, apart = (make(report.tables[0], report.frame) for make in (curves, differences))
    assert over is not None
    assert apart is not None
    for plot, expected in (
        (over, values["global"][:, 1]),
        (apart, values["global"][:, 1] - values["micro"][:, 1]),
    ):
        rows = plot.panels[0].spec["data"]["values"]
        (row,) = [row for row in rows if row["arm"] == "global" and row["step"] == 10]
        found = mean_interval(expected)
        ends = found.value, found.low, found.high
        assert [row[key] for key in ("mean", "low", "high")] == pytest.approx(ends, rel=1e-5)
        assert {row["step"] for row in rows} == {10, 20}, "the start is left out"
    assert {row["arm"] for row in apart.panels[0].spec["data"]["values"]} == {"global"}


def test_many_points_of_a_curve_are_averaged(runs: Path, run: Make) -> None:
    rows = [
        {"step": step, "load/max_vio_micro": float(step % 2)} for step in range(1, 10 * POINTS + 1)
    ]
    run(runs, "micro", rows=rows)
    report = make_report([runs])
    plot = curves(report.tables[0], report.frame)
    assert plot is not None
    (panel,) = plot.panels
    assert panel.name == "max-vio"
    points = panel.spec["data"]["values"]
    assert [point["mean"] for point in points] == [0.5] * POINTS
    assert points[0]["step"] == 5.5


def test_arms_with_other_tokens_a_step_are_drawn_over_tokens(runs: Path, run: Make) -> None:
    run(runs, "micro", rows=[{"step": step, "valid/nats": 2 - step / 100} for step in (0, 10)])
    (table,) = make_report([runs]).tables
    (arm,) = table.arms
    other = replace(arm, name="half", science={**arm.science, "global_bsz": 64})
    assert Axis(table).field == "step"
    mixed = replace(table, arms=(arm, other))
    assert Axis(mixed).field == "tokens"
    assert Axis(mixed).values("half", 10) == 10 * 64 * 128


def test_the_page_has_what_a_reader_changes(report: Report) -> None:
    plots = {plot.name: plot for plot in report.plots(report.tables[0])}
    for panel in (*plots["curves"].panels, *plots["specialisation"].panels):
        spec = panel.interactive()
        assert {"name": "hidden", "value": []} in spec["params"]
        assert {"filter": "indexof(hidden, datum.arm) < 0"} in spec["transform"]
        assert sum("zoom" in str(layer.get("params")) for layer in spec["layer"]) == 1
        legends = [
            encoding["legend"]
            for layer in spec["layer"]
            for encoding in layer["encoding"].values()
            if isinstance(encoding, dict) and "legend" in encoding
        ]
        assert legends
        assert set(legends) == {None}
        assert "legend" in str(panel.still()), "a picture keeps it"
    hover = plots["curves"].panels[0].interactive()["layer"][-1]
    assert {"param": "at", "empty": False, "value": 0.7} in hover["encoding"]["opacity"].values()


class Checker(html.parser.HTMLParser):
    """Collects what a browser would fetch or run, and whether elements are nested rightly."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.scripts = self.data = 0
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        kind = dict(attrs).get("type")
        self.scripts += tag == "script" and kind is None
        self.data += tag == "script" and kind == "application/json"
        for key, value in attrs:
            assert not key.startswith("on")
            if key in ("src", "href") and not (value or "").startswith(("data:image/", "#")):
                self.fetched.append(f"{tag} {key}={value}")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["script"]:
            self.text.append(data)


SUMMARY = (("valid/nats", ".4f"), ("load/max_vio_micro", ".2f"), ("specialization/domain", ".3f"))


def checked(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    assert checker.fetched == []
    assert checker.scripts == 2, "that of Vega-Lite, and that of the page"
    return checker


@pytest.mark.usefixtures("drawn_once")
def test_the_page_holds_all_and_fetches_nothing(report: Report) -> None:
    text = report.page("moebench report --html report.html")
    page = checked(text)
    said = " ".join(" ".join(page.text).split())
    for block in report.blocks():
        title = getattr(block, "title", "") or getattr(block, "text", "")
        assert title in said
    assert said.count("global-8") >= 3
    assert "moebench report --html report.html" in said
    assert text.count('src="data:image/svg+xml;base64,') == 8, "pictures without JavaScript"
    (arm,) = [arm for arm in report.tables[0].arms if arm.name == "global-8"]
    row = [f"{arm.metrics[name].mean:{form}}" for name, form in SUMMARY]
    assert all(f"<td><span>{cell}</span></td>" in text for cell in row), "arms at a glance"
    assert page.data == 1 + sum(len(plot.panels) for plot in report.plots(report.tables[0]))
    assert "'unsafe-eval'" not in text
    assert len(text) < 3e6
    assert text.index("<dt>Quality</dt>") < text.index("<table") < text.index("<figure")
    assert "Provenance: 15 runs" in said
    assert text == report.page("moebench report --html report.html")


def test_the_page_tells_how_to_train_the_runs_again(
    runs: Path, run: Make, plan: Callable[..., Path]
) -> None:
    records = [run(runs, arm) for arm in ("micro", "global")]
    page = " ".join(checked(make_report([runs]).page("x")).text)
    for record in records:
        assert f"moebench train --config {record.path}/config.yaml --runs-dir again" in page
    path = plan(runs, "scope", records)
    content = json.loads(path.read_text())
    for planned in content["runs"]:
        planned["overrides"] = [f"scope={planned['arm']}", "loss.z=0"]
    path.write_text(json.dumps(content))
    page = " ".join(checked(make_report([runs], study="scope", runs_dir=runs).page("x")).text)
    assert "moebench train scope=global loss.z=0" in page
    path.write_text(json.dumps(content | {"typed": ["study=scope", "--seeds", "1"]}))
    page = " ".join(checked(make_report([runs], study="scope", runs_dir=runs).page("x")).text)
    assert "moebench sweep study=scope --seeds 1" in page
    assert "moebench train" not in page


@pytest.mark.usefixtures("drawn_once")
def test_hostile_names_are_text_on_the_page_and_in_plots(runs: Path, run: Make) -> None:
    names = (
        *HOSTILE,
        "</script><img src=x onerror=alert(1)>",
        "\u202eevil",
        "עברית",
        "$\\frac{1}$",
    )
    for label in names:
        for seed in range(3):
            run(
                runs,
                label,
                seed,
                1.6 + 0.001 * seed * len(label),
                rows=ROWS,
                domains=["<b>", "$x$"],
                counts=np.ones((1, 2, 4), int),
            )
    run(runs, names[0], 9, state="failed", reason="<script>alert(2)</script>")
    report = make_report([runs], baseline=names[0])
    page = checked(report.page("moebench report '<script>'"))
    said = "".join(page.text)
    for label in ("x[/foo]", "<script>alert(1)</script>", "=cmd|' /C calc'!A0", "עברית", "L" * 300):
        assert label in said
    assert "\u202e" not in said
    assert "\x1b" not in said
    for plot in report.plots(report.tables[0]):
        assert b"<script" not in plot.svg
        ET.fromstring(plot.svg)


@pytest.mark.usefixtures("drawn_once")
@pytest.mark.parametrize(("arms", "seeds"), [(1, 1), (2, 1), (2, 3)])
def test_few_arms_and_seeds_are_drawn(runs: Path, run: Make, arms: int, seeds: int) -> None:
    a_study(runs, run, dict([*ARMS.items()][:arms]), seeds)
    report = make_report([runs])
    assert checked(report.page("x"))
    assert report.plots(report.tables[0])


def test_a_page_needs_no_torch_and_no_network(runs: Path, run: Make) -> None:
    run(runs, "micro", rows=ROWS)
    code = (
        "import sys, pathlib, socket, moebench.report as r\n"
        "socket.socket.connect = None\n"
        "r.make_report([pathlib.Path(sys.argv[1])]).page('x')\n"
        "assert not {'torch', 'matplotlib', 'scipy.stats'} & {*sys.modules}"
    )
    done = subprocess.run([sys.executable, "-c", code, str(runs)], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode == 0

"""Plots and the page: deterministic, self-contained, and safe whatever names hold."""

import html.parser
import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moebench.records import Record
from moebench.report import Report, make_report
from moebench.report.draw import heatmaps, plots
from moebench.report.draw.style import Plot
from moebench.report.infer.arms import Table
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
        *("differences", "balance_bsz", "specialisation", "domains", "cost", "switches", "curves")
    ]
    for one, other in zip(first, second, strict=True):
        assert one == other
        assert one.png == other.png
        assert ET.fromstring(one.svg).tag.endswith("svg")
        assert one.png.startswith(b"\x89PNG")
        assert one.caption.endswith(".")


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


def test_heatmaps_show_every_scope_before_other_weights_of_one(
    runs: Path, run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = {
        f"{scope} loss.balance={weight}": {**ARMS[scope], "loss.balance": weight}
        for scope in ("micro", "global", "sequence")
        for weight in (0.05, 0.005, 0.5)
    }
    a_study(runs, run, arms, seeds=1)
    report = make_report([runs], baseline="micro loss.balance=0.05")
    titled: list[str] = []
    monkeypatch.setattr(heatmaps, "short", lambda name: titled.append(name) or name)
    heatmaps.domains(report.tables[0], report.frame)
    shown = [name for name in titled if name in arms]
    assert len(shown) == heatmaps.MOST_HEATMAPS
    assert sorted(shown[:3]) == sorted(name for name in arms if name.endswith("=0.05"))


class Checker(html.parser.HTMLParser):
    """Collects what a browser would fetch or run, and whether elements are nested rightly."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.scripts = 0
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        for key, value in attrs:
            assert not key.startswith("on")
            if key in ("src", "href") and not (value or "").startswith(("data:image/", "#")):
                self.fetched.append(f"{tag} {key}={value}")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def checked(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    assert checker.fetched == []
    assert checker.scripts == 1
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
    assert text.count("data:image/svg+xml;base64,") == 7
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


def test_broken_pairing_is_named(runs: Path, run: Make) -> None:
    rows = [{"step": 0, "valid/nats": 5.6}]
    for arm in ("micro", "global"):
        run(runs, arm, 0, rows=rows)
    for arm, science in (("twin", {"router.perturb": 1e-6}), ("dense", {"model.moe": False})):
        run(runs, arm, 0, rows=[{"step": 0, "valid/nats": 5.7}], science=science)
    assert "are no pair" not in make_report([runs]).render()
    broken = run(runs, "shuffled", 0, rows=[{"step": 0, "valid/nats": 5.63}])
    text = " ".join(make_report([runs]).render().split())
    assert re.search(
        rf"{broken.name} and \S+ are no pair: .* \(nats before the first step 5.6300 and 5.6000\)",
        text,
    )


def test_runs_whose_first_steps_hold_other_sequences_are_named(runs: Path, run: Make) -> None:
    for seed in (0, 1):
        for arm in ("micro", "global"):
            run(runs, arm, seed, first_sequences=f"of seed {seed}")
    run(runs, "before they were kept", 1)
    assert "are no pair" not in make_report([runs]).render()
    other = run(runs, "shuffled", 1, first_sequences="of a code that drew them otherwise")
    run(runs, "eight", 1, science={"micro_bsz": 8}, first_sequences="of eight")
    text = " ".join(make_report([runs]).render().split())
    sentence = r"{} and \S+-s1 are no pair: their first steps hold other sequences\."
    assert re.search(sentence.format(other.name), text)
    assert len(re.findall(sentence.format(r"\S+"), text)) == 1, "an arm whose keys explain it"


def test_arms_that_see_other_batches_are_named(runs: Path, run: Make) -> None:
    run(runs, "micro")
    run(runs, "mixed", science={"data.homogeneity": 0.0})  # the same sequences of a step, regrouped
    assert "are no pairs" not in make_report([runs]).render()
    run(runs, "law", science={"data.weights": {"law": 2}})
    run(runs, "eight", science={"micro_bsz": 8})
    text = " ".join(make_report([runs]).render().split())
    assert "eight and micro are no pairs: they see other batches (micro_bsz 8, there 4)." in text
    assert "(data.weights {'law': 2}, there at its default)" in text
    assert "mixed and micro" not in text
    run(runs, "other data", science={"data": "ffff"})  # is never compared at all
    assert len(make_report([runs]).tables) == 2


def test_a_page_needs_no_torch_and_no_network(runs: Path, run: Make) -> None:
    run(runs, "micro", rows=ROWS)
    code = (
        "import sys, pathlib, socket, moebench.report as r\n"
        "socket.socket.connect = None\n"
        "r.make_report([pathlib.Path(sys.argv[1])]).page('x')\n"
        "assert 'torch' not in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, str(runs)], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode == 0

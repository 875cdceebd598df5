"""What a notebook shows of runs: the frame, the report and the plots."""

import base64
from collections.abc import Callable
from pathlib import Path

from moebench.records import Record
from moebench.report import load, make_report
from tests.report.examples import HOSTILE, scopes

Make = Callable[..., Record]


def test_runs_show_their_arms_report_and_plots(runs: Path, run: Make) -> None:
    scopes(runs, run)
    made = load(runs, where=["seed=0,1"])
    assert made.overview()["arm"].tolist() == ["global", "micro", "shuffled"]
    assert made.overview()["seeds"].tolist() == ["0, 1"] * 3
    assert made.overview()["done"].tolist() == [2, 2, 2]
    shown = made._repr_html_()
    assert "<td>global</td>" in shown
    assert "left out" not in shown
    wanted = make_report([runs], where=["seed=0,1"], baseline="micro")
    assert made.report(baseline="micro")._repr_markdown_() == wanted.render("md")
    plots = made.plots(baseline="micro")
    assert [plot.name for plot in plots] == [plot.name for plot in wanted.plots(wanted.tables[0])]
    html = plots._repr_html_()
    assert html.count("<img") == len(plots) > 0
    assert base64.b64encode(plots[0].svg).decode() in html


def test_names_are_text(runs: Path, run: Make) -> None:
    for seed, arm in enumerate(HOSTILE):
        run(runs, arm, seed, 1.6)
    (runs / "broken").mkdir()
    (runs / "broken" / "status.json").write_text("{")
    made = load(runs)
    assert "<script>" not in made._repr_html_()
    assert "1 left out or damaged" in made._repr_html_()

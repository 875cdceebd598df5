"""`moebench report`: what it prints, which files it writes, and what it refuses."""

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.text import Text

from moebench.cli.report import VERDICTS, _colour
from moebench.report import make_report
from tests.calls import Call
from tests.report.conftest import make_run

GROUP = {"scope": "group", "global_bsz": 32}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("os.fsync", lambda _: None)
    path = tmp_path / "runs"
    path.mkdir()
    for seed in range(3):
        for arm, size, nats in (("micro", 4, 1.6), ("global", 32, 1.5)):
            science = GROUP | {"balance_bsz": size}
            rows = [{"step": s, "valid/nats": 2 - s / 100, "train/loss": 2.0} for s in (0, 10, 20)]
            per: dict[str, float | None] = {"valid/nats/law": nats, "load/entropy": 0.9}
            make_run(
                path,
                arm,
                seed,
                nats + 0.01 * seed + 0.001 * seed**2 * (size == 4),
                sequences=size,
                science=science,
                metrics=per,
                rows=rows,
            )
    return path


def test_a_page_and_plots_are_written_and_the_table_is_not_printed(call: Call, runs: Path) -> None:
    html, plots = runs.parent / "deep" / "report.html", runs.parent / "plots"
    where = ["--runs-dir", str(runs), "--html", str(html), "--plots", str(plots)]
    result = call("report", *where)
    assert (result.code, result.out) == (0, "")
    assert f"{html}: open it in a browser" in " ".join(result.err.split())
    assert html.read_text().startswith("<!doctype html>")
    names = {path.name for path in plots.iterdir()}
    assert {"differences.svg", "differences.png", "curves.svg"} <= names


def test_options_choose_what_is_shown(call: Call, runs: Path) -> None:
    command = ["report", "--runs-dir", str(runs)]
    assert "law" in call(*command, "--per-domain").out
    chosen = call(*command, "--metrics", "load/*,valid/nats", "--json")
    assert set(json.loads(chosen.out)["rows"][0]["metrics"]) == {"load/entropy", "valid/nats"}
    seed = call(*command, "--where", "seed=0,1", "--format", "csv").out.splitlines()
    assert {line.split(",")[4] for line in seed[1:]} == {"2"}
    tables = json.loads(call(*command, "--by", "scope", "--json").out)["tables"]
    assert [table["differs"]["scope"] for table in tables] == ["global", "micro"]
    rows = json.loads(call(*command, "--at", "10", "--json").out)["rows"]
    assert [row["metrics"]["valid/nats"]["mean"] for row in rows] == pytest.approx([1.9, 1.9])
    turned = json.loads(
        call(*command, "--sort=-load/entropy", "--baseline", "global", "--json").out
    )
    assert [row["arm"] for row in turned["rows"]] == ["global", "micro"]


def test_many_metrics_are_rows_and_few_are_columns(call: Call, runs: Path) -> None:
    command = ["report", "--runs-dir", str(runs), "--format", "md"]

    def table(metrics: str) -> tuple[list[str], dict[str, list[str]]]:
        parts = call(*command, "--metrics", metrics).out.split("\n\n")
        lines = next(part for part in parts if part.startswith("|")).splitlines()
        head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
        return head, {name: cells for name, *cells in rows}

    head, rows = table("*")
    assert (head[0], head[-1]) == ("metric", "difference")
    assert {"seeds", "load/entropy", "valid/nats", "valid/nats/law"} <= set(rows)
    turned, few = table("valid/nats,load/entropy")
    assert turned[:2] == ["arm", "seeds"]
    for arm in ("micro", "global"):
        at = head.index(arm) - 1
        assert rows["seeds"][at] == few[arm][0] == "3"
        for metric in ("valid/nats", "load/entropy"):
            assert rows[metric][at] == few[arm][turned.index(metric) - 1]
    assert rows["valid/nats"][-1] == few["global"][turned.index("valid/nats")]


def test_every_format_has_the_same_numbers(call: Call, runs: Path) -> None:
    command = ["report", "--runs-dir", str(runs), "--format"]
    rows = json.loads(call(*command, "json").out)["rows"]
    nats = {row["arm"]: row["metrics"]["valid/nats"] for row in rows}
    table = pq.read_table(io.BytesIO(make_report([runs]).encode("parquet"))).to_pylist()
    parquet = {r["arm"]: r for r in table if r["metric"] == "valid/nats"}
    lines = [line.split(",") for line in call(*command, "csv").out.splitlines()]
    csv = {r[1]: dict(zip(lines[0], r, strict=True)) for r in lines if r[3] == "valid/nats"}
    for arm, each in nats.items():
        for key in ("mean", "low", "high", "difference", "difference_low", "difference_high"):
            assert parquet[arm][key] == each[key]
            assert csv[arm][key] == ("" if each[key] is None else str(each[key]))
    for form in ("table", "md", "latex"):
        text = call(*command, form, "--full").out.replace("$-$", "-")  # as LaTeX has a minus
        assert f"{nats['global']['mean']:.4f}" in text
        ends = (nats["global"][f"difference_{end}"] for end in ("low", "high"))
        assert "{:.4f} to {:.4f}".format(*ends) in text


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--metrics", "load/entropie"], "--metrics load/entropie: these runs hold no such metric"),
        (["--sort", "x"], "--sort x: these runs hold no such metric; there are load/*, "),
        (["--metrics", "lod*"], "these runs hold no such metric; did you mean load/*?"),
        (["--at", "15"], "--at 15: no finished run was evaluated there; choose one of 0, 10, 20"),
        (["--where", "x=1"], "--where x: there is no such key"),
        (["--where", "seed=7"], "--where seed=7: no finished run matches; they have seed 0, 1, 2"),
        (["--by", "sope"], "--by sope: there is no such key; did you mean scope"),
        (["--format", "xml"], "--format xml: must be one of table, md, csv, json, latex, parquet"),
        (
            ["diff", "a"],
            "diff: compares two runs or two studies, as in moebench diff A B, and 1 was given",
        ),
        (["--html", "/proc/no/report.html"], "/proc/no/report.html: cannot be written"),
    ],
)
def test_what_is_wrong_is_one_line(call: Call, runs: Path, words: list[str], error: str) -> None:
    result = call("report", "--runs-dir", str(runs), *words)
    assert result.code == 2
    assert error in result.err
    assert result.err.count("error:") == 1
    assert result.out == ""


@pytest.mark.parametrize("width", ["80", "100", "160"])
def test_one_screen_holds_the_answers_and_the_best_of_many_arms(
    call: Call, runs: Path, monkeypatch: pytest.MonkeyPatch, width: str
) -> None:
    for arm in range(60):
        name = f"arm number {arm} of a sweep over many balance weights"
        make_run(runs, name, 0, 1.7, science=GROUP)
    monkeypatch.setenv("COLUMNS", width)
    short = call("report", "--runs-dir", str(runs)).out.splitlines()
    assert len(short) <= 40
    assert max(map(len, short)) <= int(width)
    text = " ".join(" ".join(short).split())
    quality = "Quality: global has the lowest validation loss (valid/nats), 1.5100 nats"
    assert text.index(quality) < text.index("arm ")
    assert "No verdict" in text
    assert "1.5100 -0.1017 ±0.0052" in text
    full = call("report", "--runs-dir", str(runs), "--full").out.splitlines()
    assert max(map(len, full)) <= int(width)
    assert len(full) > 40
    assert full.index("Answers") < full.index("Load and specialisation")


def test_a_report_that_fits_no_width_takes_80_columns(
    call: Call, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    lines = call("report", "--runs-dir", str(runs)).out.splitlines()
    assert 60 < max(map(len, lines)) <= 80


def test_json_gives_the_answers(call: Call, runs: Path) -> None:
    table = json.loads(call("report", "--runs-dir", str(runs), "--json").out)["tables"][0]
    quality = table["answers"][0]
    assert (quality["question"], quality["arm"]) == ("quality", "global")
    assert quality["metric"] == "valid/nats"


def test_every_verdict_has_a_colour() -> None:
    from moebench.report.paper.verdicts import AGREES, CANNOT_TELL, CONTRADICTS, WITHIN

    for word in (AGREES, CONTRADICTS, CANNOT_TELL, WITHIN):
        line = Text(f"Finding 1: {word} (between -0.2 and 0.2)")
        _colour(line)
        [span] = line.spans
        assert line.plain[span.start : span.end] == word
        assert span.style in VERDICTS.values()

"""Whole reports: what they say, in every format, on few and on hostile records."""

import csv
import io
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moebench.errors import ConfigError, RecordError
from moebench.records import Record
from moebench.report import FORMATS, make_report
from moebench.report.show.sentences import cautions
from tests.report.examples import HOSTILE, scopes, texts

Make = Callable[..., Record]
TEXTS = [form for form in FORMATS if form != "parquet"]


def test_the_rows_for_programs(runs: Path, run: Make) -> None:
    scopes(runs, run, seeds=6)
    found = make_report([runs]).to_dict()
    assert found["schema_version"] == 1
    rows = {row["arm"]: row for row in found["rows"]}
    assert list(rows) == ["micro", "global", "shuffled"]
    base, row = rows["micro"], rows["global"]
    assert (row["n"], row["seeds"], row["baseline"]) == (6, [*range(6)], "micro")
    assert row["group"] == {"sequences": 128, "tokens": 16384}
    nats = row["metrics"]["valid/nats"]
    assert nats["difference_low"] < nats["difference"] < nats["difference_high"] < 0
    assert nats["p"] < 0.05
    assert nats["paired"]["high"] < 0
    assert nats["withheld"] == ""
    assert nats["difference"] == pytest.approx(nats["mean"] - base["metrics"]["valid/nats"]["mean"])
    assert base["metrics"]["valid/nats"]["difference"] is None
    assert "p" not in row["metrics"]["load/entropy"]
    ppl = row["metrics"]["valid/ppl"]
    assert ppl["mean"] == pytest.approx(math.exp(nats["mean"]))
    assert ppl["difference_high"] == pytest.approx(
        base["metrics"]["valid/ppl"]["mean"] * math.expm1(nats["difference_high"])
    )
    json.dumps(found, allow_nan=False)


def test_the_text_shows_load_first_and_then_says_what_can_be_told(runs: Path, run: Make) -> None:
    scopes(runs, run, seeds=6)
    text = texts(make_report([runs]))
    assert (
        text.index("Load and specialisation") < text.index("Perplexity") < text.index("cannot tell")
    )
    assert "random routing 0.22 0.04 0.02" in text
    assert "global: valid/nats is lower than micro's by 0.01" in text
    assert "shuffled: cannot tell: difference" in text
    assert "These runs resolve differences of 0.0" in text
    assert "0.0159 nats a token, is about 0.0040 nats a byte" in text
    assert "6.6 million tokens in 400 steps" in text
    assert "lets micro-batches be less even (MaxVio micro 1.7" in text
    assert "specialises more (0.3" in text
    assert "in every one of 6 seeds" in text
    assert "validation set" not in text[text.index("in words") :]  # its sign changes with the seed


def test_the_paper_is_put_beside_other_tokenizers_by_bytes(runs: Path, run: Make) -> None:
    for seed, nats in enumerate((3.2, 3.21, 3.19)):
        bits = {"valid/bits_per_byte": nats / math.log(2) / 3}
        run(runs, "micro", seed, nats, metrics=bits)
        run(runs, "global", seed, nats + 0.001 * seed, metrics=bits)
    assert "is about 0.0119 nats a token of these runs" in texts(make_report([runs]))


def test_every_line_fits_100_columns_and_loses_no_digit(runs: Path, run: Make) -> None:
    scopes(runs, run)
    for seed in range(3):
        run(runs, "L" * 300, seed, 11.0 + 2.0 * seed**2, sequences=None)
    text = make_report([runs]).render("table")
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    assert text.count("L") >= 300


@pytest.mark.parametrize("form", TEXTS)
@pytest.mark.parametrize(("arms", "seeds"), [(1, 1), (1, 3), (2, 1), (2, 2), (3, 4)])
def test_every_format_renders_any_number_of_arms_and_seeds(
    runs: Path, run: Make, form: str, arms: int, seeds: int
) -> None:
    for arm in range(arms):
        for seed in range(seeds):
            run(runs, f"arm-{arm}", seed, 1.6 + 0.01 * math.sin(7 * arm + 3 * seed))
    report = make_report([runs])
    text = report.render(form)
    assert text.count(f"arm-{arms - 1}")
    assert "nan" not in text.lower()
    assert text == make_report([runs]).render(form)


@pytest.mark.parametrize("form", TEXTS)
def test_hostile_labels_are_text_in_every_format(runs: Path, run: Make, form: str) -> None:
    for label in HOSTILE:
        for seed in range(3):
            run(runs, label, seed, 1.6 + 0.001 * seed * len(label))
    run(runs, HOSTILE[0], 9, state="failed", reason="[bold]x[/bold] | <b>")
    text = make_report([runs], baseline=HOSTILE[0]).render(form)
    assert "\x1b" not in text
    if form == "table":
        assert "x[/foo]" in text
        assert "[bold]x[/bold] | <b>" in text
    if form == "md":
        assert "<script>" not in text
        assert "&lt;script&gt;" in text
        rows = [line for line in text.splitlines() if line.startswith("|")]
        unescaped = {line.replace("\\|", "").count("|") for line in rows}
        assert unescaped == {11, 9}
    if form == "csv":
        cells = [cell for row in csv.reader(io.StringIO(text)) for cell in row]
        assert "'=cmd|' /C calc'!A0" in cells
        assert not any(cell.startswith(("=", "+", "@")) for cell in cells)
        assert any(cell.startswith("-0.") for cell in cells)
    if form == "latex":
        plain = re.sub(r"\\[&%$#_{}]", "", text)
        body = "".join(re.findall(r"midrule(.*?)\\bottomrule", plain, re.DOTALL))
        assert r"\textless{}script\textgreater{}" in body
        assert not re.search(r"[%$#_]", body.replace(r"$\pm$", "").replace("$-$", ""))
        assert all(row.count("&") == 7 or "&" not in row for row in body.split(r"\\")[-5:])
    if form == "json":
        assert HOSTILE[3] in [row["arm"] for row in json.loads(text)["rows"]]


def test_latex_compiles_everywhere_and_joins_no_signs(runs: Path, run: Make) -> None:
    for label in ("עברית", "a--b", "``x''", "русский 10", "W" * 90, "\ufffd"):
        for seed in range(3):
            run(runs, label, seed, 1.6 + 0.001 * seed * len(label))
    text = make_report([runs], baseline="a--b").render("latex")
    letters = re.compile(r"\\letters\{([^\0-\xff]+)\}\{((?:\\textbackslash\{\}u[0-9a-f]{4})+)\}")
    found = dict(letters.findall(text))
    assert found["עברית"].replace(r"\textbackslash{}u", "\\u") == r"\u05e2\u05d1\u05e8\u05d9\u05ea"
    assert "русский" in found
    assert letters.sub("", text).isascii()  # no other letter that pdfLaTeX lacks
    assert "a-{}-b" in text
    assert r"\textasciigrave{}\textasciigrave{}x'{}'" in text
    assert r"W\allowbreak{}W" in text
    assert (
        text.count(r"\begin{tabular}") == text.count(r"\resizebox") == text.count(r"\end{tabular}}")
    )
    assert re.search(r"\$-\$0\.\d{4} to ", text)


def test_one_and_two_seeds_are_no_finding(runs: Path, tmp_path: Path, run: Make) -> None:
    scopes(runs, run, seeds=1)
    text = texts(make_report([runs]))
    assert "One pair of runs shows no uncertainty" in text
    assert "in the one shared seed" in text
    assert "lower than" not in text
    scopes(tmp_path / "two", run, seeds=2)
    report = make_report([tmp_path / "two"])
    text = texts(report)
    assert "nats against micro in seeds 0 and 1" in text
    assert "Two seeds leave one degree of freedom" in text
    assert "lower than" not in text
    row = report.to_dict()["rows"][1]["metrics"]["valid/nats"]
    assert row["difference"] is not None
    assert (row["low"], row["difference_low"], row["difference_high"], row["p"]) == (None,) * 4
    assert set(row["per_seed"]) == {"0", "1"}


def test_a_collapsed_arm_is_noticed(runs: Path, run: Make) -> None:
    scopes(runs, run, seeds=5)
    for seed, nats in enumerate((2.0, 3.5, 1.9, 4.0, 2.4)):
        run(runs, "none", seed, nats, sequences=None)
    report = make_report([runs])
    text = texts(report)
    assert "none: its runs vary clearly more than those of the other arms" in text
    of_pairs = "; the interval below its difference is not pooled: it is that of its own pairs."
    [caution] = cautions(report.tables[0])
    assert caution.endswith(f"(F test at 0.1 %){of_pairs}")
    assert cautions(report.tables[0], pooled=False) == [caution.replace(of_pairs, ".")]
    assert report.to_dict()["rows"][-1]["metrics"]["valid/nats"]["left_pool"] == "more"


def test_a_collapsed_baseline_leaves_nothing_pooled(runs: Path, run: Make) -> None:
    scopes(runs, run, seeds=5)
    for seed, nats in enumerate((2.0, 3.5, 1.9, 4.0, 2.4)):
        run(runs, "none", seed, nats, sequences=None)
    report = make_report([runs], baseline="none")
    [table] = report.tables
    assert table.comparisons.sd is None
    assert cautions(table)[0].endswith(
        "; as it is the baseline, the intervals below the differences are not pooled: each is that "
        "of the arm's own pairs."
    )


def test_missing_runs_are_said_and_do_not_stop_the_test(runs: Path, run: Make) -> None:
    scopes(runs, run, seeds=4)
    run(runs, "global-64", 1, 1.59)
    run(runs, "global-64", 2, state="failed", reason="out of memory")
    text = texts(make_report([runs]))
    assert "Not every arm has every seed" in text
    assert "failed at step 120 of 400: out of memory" in text
    assert "global-64: cannot tell: " in text


def test_tables_of_runs_that_differ_are_headed_by_what_differs(runs: Path, run: Make) -> None:
    scopes(runs, run)
    run(runs, "micro", 0, science={"train.steps": 800, "model.num_shared_experts": 1})
    report = make_report([runs])
    text = texts(report)
    assert "Runs with train.steps=400, model.num_shared_experts at its default" in text
    assert "Runs with train.steps=800, model.num_shared_experts=1" in text
    assert "There is one arm: nothing to compare it with." in text
    assert [row["n"] for row in report.to_dict()["rows"]] == [3, 3, 3, 1]


def test_runs_on_different_machines_are_named(runs: Path, run: Make) -> None:
    run(runs, "micro", 0)
    run(runs, "global", 0, device_name="H200", torch="2.12.0")
    text = texts(make_report([runs]))
    assert "The runs differ in device_name: H200, a CPU." in text
    assert "The runs differ in torch: 2.11.0, 2.12.0." in text


# Errors


def test_nothing_finished_is_one_line_with_what_there_is(runs: Path, run: Make) -> None:
    run(runs, "micro", state="failed")
    run(runs, "global", state="running")
    with pytest.raises(RecordError) as error:
        make_report([runs])
    text = str(error.value)
    assert text.startswith(f"{runs}: holds no finished run (")
    assert "1 failed" in text
    assert "1 running" in text
    assert text.endswith("; wait for their first evaluation")
    assert error.value.exit_code == 2


def test_finished_runs_without_a_metric_are_named(runs: Path, run: Make) -> None:
    run(runs, "micro", 0, None)
    with pytest.raises(RecordError, match=r"no finished run .*holds no metric"):
        make_report([runs])
    run(runs, "global", 0)
    report = make_report([runs])
    assert [arm.name for arm in report.tables[0].arms] == ["global"]
    assert "summary.json: holds no metric" in report.render()


def test_arms_without_a_shared_seed_are_said_to_have_none(runs: Path, run: Make) -> None:
    for seed in range(3):
        run(runs, "micro", seed, 1.6 + 0.01 * seed)
        run(runs, "global", 5 + seed, 1.5 + 0.01 * seed)
    text = make_report([runs]).render()
    assert "global: cannot tell: it shares no finished seed with micro." in text
    assert "differences are to" not in text  # a table has no column of them, and no such words


def test_runs_that_diverged_are_shown_by_powers_of_ten(runs: Path, run: Make) -> None:
    for seed in range(3):
        run(runs, "micro", seed, 1.6 + 0.01 * seed)
        run(runs, "global", seed, 400.0 * (1 + 0.1 * seed))
    text = make_report([runs]).render()
    assert re.search(r"\be\+19\d|\de\+19\d", text)
    assert max(map(len, re.findall(r"\d+", text))) < 16
    assert "takes more than 10,000 seeds (approximate)" in " ".join(text.split())


def test_intervals_are_not_spoken_of_where_there_are_none(runs: Path, run: Make) -> None:
    for arm in ("micro", "global", "shuffled"):
        for seed in range(3):
            run(runs, arm, seed, 1.6)
    text = make_report([runs]).render()
    assert "global: equals micro in seeds 0, 1 and 2." in text
    assert "The intervals below" not in text


def test_an_unknown_format_is_refused(runs: Path, run: Make) -> None:
    run(runs, "micro")
    with pytest.raises(ConfigError, match="--format xml: must be one of table, md, csv, json"):
        make_report([runs]).render("xml")


def test_a_report_needs_no_torch(runs: Path, run: Make) -> None:
    scopes(runs, run)
    code = (
        "import sys, pathlib, moebench.report as r;"
        "r.make_report([pathlib.Path(sys.argv[1])]).render();"
        "bad = {'torch', 'matplotlib', 'scipy.stats'} & set(sys.modules); "
        "sys.exit(', '.join(bad) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(runs)], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode == 0

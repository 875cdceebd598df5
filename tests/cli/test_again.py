"""The commands on a page, pasted into an empty folder: they train its runs and make the page."""

import html
import json
import re
import subprocess
from pathlib import Path

import pytest

from moebench.records import Record
from tests.calls import Call
from tests.report.conftest import make_run

SHELL = """moebench() { printf '%s\\0' "$@"; printf '\\n'; }
"""


def pasted(page: str) -> list[list[str]]:
    """The words of each command on a page, as a shell splits them."""
    (text,) = re.findall(r"How this was made</h2>.*?<pre[^>]*>(.*?)</pre>", page, re.DOTALL)
    words = subprocess.run(
        ["bash", "-c", SHELL + html.unescape(text)], capture_output=True, text=True, check=True
    )
    assert words.stderr == ""
    return [line.split("\0")[:-1] for line in words.stdout.splitlines()]


def results() -> dict[str, tuple[float, list[str]]]:
    return {
        path.name: (Record(path).summary()["valid/nats"], Record(path).damage())
        for path in sorted(Path("runs").iterdir())
        if (path / "summary.json").exists()
    }


def test_a_study_and_its_page_are_made_again_in_an_empty_folder(
    call: Call, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["study=demo", *small, "--seeds", "1", "--exclude", "scope=shuffled"]
    assert call("sweep", "--jobs", "2", *words).code == 0
    chosen = ["--study", "demo", "--baseline", "global", "--where", "seed=0,1"]
    assert call("report", *chosen, "--html", "deep/the page.html").code == 0
    page = Path("deep/the page.html").read_text()
    commands = pasted(page)
    assert [command[0] for command in commands] == ["sweep", "report"]
    assert commands[1] == ["report", *chosen, "--html", "the page.html"]
    before = results()
    assert [name.partition("-")[0] for name in before] == ["global", "micro"]
    plans = [path.name for path in Path("runs/studies").iterdir()]
    told = json.loads(call("report", *chosen, "--json").out)

    empty = Path("empty").resolve()
    empty.mkdir()
    monkeypatch.chdir(empty)
    for command in commands:
        assert call(*command).code == 0
    assert results() == before
    assert [path.name for path in Path("runs/studies").iterdir()] == plans
    again = json.loads(call("report", *chosen, "--json").out)
    quality = [(row["arm"], row["metrics"]["valid/nats"]) for row in told["rows"]]
    assert [(row["arm"], row["metrics"]["valid/nats"]) for row in again["rows"]] == quality
    assert pasted(Path("the page.html").read_text()) == commands


def test_runs_of_no_study_are_trained_one_by_one(call: Call) -> None:
    make_run(Path("runs"), "micro")
    assert call("report", "--html", "page.html").code == 0
    train, report = pasted(Path("page.html").read_text())
    (name,) = results()
    assert train == ["train", "--config", f"runs/{name}/config.yaml", "--runs-dir", "again"]
    assert report == ["report", "--html", "page.html"]

"""docs/metrics.md lists every metric, as its declaration says."""

import re
import subprocess
import sys
from pathlib import Path

from moebench.catalogue import METRICS
from moebench.catalogue.metrics_page import COMMAND, NOTES, metrics_page

METRICS_MD = Path(__file__).parent.parent.parent / "docs" / "metrics.md"


def test_the_page_is_up_to_date() -> None:
    remedy = f"docs/metrics.md differs from the catalogue; run {COMMAND}"
    assert METRICS_MD.read_text(encoding="utf-8") == metrics_page(), remedy


def test_every_metric_is_listed_once_with_its_meaning() -> None:
    rows = re.findall(r"^\| `(.+?)` \| (.+?) \|", metrics_page(), re.MULTILINE)
    assert [name for name, _ in rows] == [metric.key for metric in METRICS.values()]
    for (_, meaning), metric in zip(rows, METRICS.values(), strict=True):
        assert meaning.replace(r"\|", "|").startswith(metric.meaning[:20])


def test_every_note_belongs_to_a_question() -> None:
    assert NOTES.keys() <= {metric.question for metric in METRICS.values()}


def test_the_command_prints_the_page() -> None:
    python, *command = COMMAND.partition(" >")[0].split()
    assert python == "python"
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout == metrics_page()

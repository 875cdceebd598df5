"""What `inspect` and `evaluate` print: tables of experts, coloured text, accuracies."""

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.text import Text

from moebench.inspect import Inspection, Routed
from moebench.inspect.render import show, show_tasks, show_text
from moebench.metrics.tasks import accuracy


def test_dead_experts_and_specialists_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    counts = np.array([[[9, 0, 0, 1], [0, 5, 0, 5]]])
    made = Inspection("x\x1b[31m", [], ["code", "law"], counts, 1, {"load/max_vio_batch": 0.5})
    show(made, Console(width=100))
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "dead 1" in out
    assert "dead: no token chose it" in out
    assert "code 100%" in out
    assert "law 83%, code 17%" in out


def test_dead_experts_beyond_the_list_are_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    counts = np.ones((1, 2, 100), np.int64)
    counts[..., [7, 41]] = 0
    show(Inspection("x", [], ["code", "law"], counts, 1, {}), Console(width=80))
    out = capsys.readouterr().out
    assert "the fullest first, 64 of 100" in out
    assert "dead, too: 7, 41" in out


def test_a_text_is_coloured_where_there_are_colours_and_fits_its_width() -> None:
    draw = np.random.default_rng(0)
    made = Routed(list("abc"), draw.integers(0, 64, (24, 3, 8)).tolist(), 64)
    for width in (80, 100):
        out = io.StringIO()
        show_text(made, Console(file=out, width=width, force_terminal=True, color_system="256"))
        plain = Text.from_ansi(out.getvalue()).plain.splitlines()
        assert [line for line in plain if line.endswith("abc")] == [
            f"layer {layer}  abc" for layer in range(24)
        ]
        assert max(map(len, plain)) <= width
        tables = " ".join(plain[plain.index("the experts of each token, the likeliest first") :])
        for layer in made.experts:
            for experts in layer:
                assert " ".join(map(str, experts)) in tables
    out = io.StringIO()
    show_text(made, Console(file=out, width=80))
    assert "abc" not in out.getvalue(), "without colours it would say nothing"


def test_runs_of_other_domains_share_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    def result(domain: str, right: list[int]) -> dict[str, Any]:
        found = accuracy(right, 0.25)._asdict()
        return {"cloze": {"all": found, "domain": {domain: found}}}

    show_tasks({"runs/a": result("law", [1] * 9), "b": result("code", [0, 1])}, Console(width=90))
    title, head, *rows = capsys.readouterr().out.splitlines()
    assert "chance: 25" in title
    assert head.split() == ["domain", "n", "a", "b"]
    assert [row.split() for row in rows] == [
        ["law", "9", "100.0", "(70.1–100.0)"],
        ["code", "2", "50.0", "(9.5–90.5)"],
        ["all", "differs", "100.0", "(70.1–100.0)", "50.0", "(9.5–90.5)"],
    ]

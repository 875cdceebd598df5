"""Pictures of a report with more arms than colours."""

import re
from collections.abc import Callable
from pathlib import Path

from moebench.records import Record
from moebench.report import make_report
from moebench.report.draw.style import COLOURS, SYMBOLS, symbol

Make = Callable[..., Record]
WEIGHTS = (0.01, 0.05, 0.2, 0.5)
SIZES = {"micro": 4, "global-32": 32, "global-64": 64}


def test_no_two_arms_have_colour_and_symbol_alike() -> None:
    number = len(COLOURS) * len(SYMBOLS)
    assert len({(place % len(COLOURS), symbol(place)) for place in range(number)}) == number


def test_many_arms_have_rows_apart_and_only_outer_lines_have_numbers(runs: Path, run: Make) -> None:
    for seed in range(3):
        for scope, size in SIZES.items():
            for place, weight in enumerate(WEIGHTS):
                nats = 1.6 + 0.01 * seed * place - size / 1e4
                science = {"scope": "group", "balance_bsz": size, "loss.balance": weight}
                own = {"load/max_vio_global": (2.0 + seed) / (1 + place)}
                run(runs, scope, seed, nats, science=science, metrics=own, sequences=size)
    report = make_report([runs], baseline="micro loss.balance=0.05")
    drawn = report.plots(report.tables[0])
    plots = {plot.name: plot.panels[0] for plot in drawn}
    rows = plots["differences"].spec["data"]["values"]
    assert plots["differences"].height >= 20 * len(rows) == 220
    layers = plots["weights"].spec["layer"]
    numbered = [layer["transform"][0]["filter"] for layer in layers if "transform" in layer]
    assert [of["equal"] for of in numbered] == ["micro", "global-64"]
    svg = next(plot.svg for plot in drawn if plot.name == "weights").decode()
    marks = "".join(re.findall(r'"mark-text role-mark.*?</g>', svg, re.DOTALL))
    labels = re.findall(r'"(start|end)" transform="translate\(([\d.]+),.*?>([\d.]+)</text>', marks)
    assert len(labels) == 2 * len(WEIGHTS)
    for anchor, x, text in labels:  # none is cut at a side of the plot
        end = float(x) + (1 if anchor == "start" else -1) * 5.6 * len(text)
        assert 0 < end < plots["weights"].width, text

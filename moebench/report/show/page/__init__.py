"""The report as one HTML page: answers, interactive plots, tables, and how it was made.

The file uses no network: its security policy allows only its own content. The templates escape all
text. `content` is what the records say, and `whole` the page around it. With JavaScript, plots are
drawn by Vega-Lite (`bundle.py`), arms are switched on and off, and tables are sorted and filtered;
without, the same plots are pictures and all tables are there. `moebench watch` serves the same page
and has the content made again.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from moebench import __version__
from moebench.plans import Plan
from moebench.report.draw.chart import Plot
from moebench.report.draw.style import COLOURS, MOST_ARMS, ON_DARK, THEMES, symbol
from moebench.report.infer.arms import Table
from moebench.report.paper.verdicts import AGREES, CANNOT_TELL, CONTRADICTS
from moebench.report.show.again import again
from moebench.report.show.answers import Answer, answers
from moebench.report.show.blocks import Block, Grid, Heading, Sentences
from moebench.report.show.brief import COLUMNS
from moebench.report.show.numbers import as_percent
from moebench.report.show.page.bundle import bundle
from moebench.report.show.sentences import lead
from moebench.report.show.table import ANSWERS

FOLDER = Path(__file__).parent
MARKS = {AGREES: "✓", CONTRADICTS: "✗", CANNOT_TELL: "?"}  # beside the colour, for the colour-blind
LABELS = {"treatment": "Treatment check"}  # of answers, where not their question
SHAPES = {  # paths of symbols in a square of 16 by 16 around 0
    "circle": "M0-6A6 6 0 1 1 0 6A6 6 0 1 1 0-6Z",
    "square": "M-5.5-5.5H5.5V5.5H-5.5Z",
    "diamond": "M0-7.5L6 0 0 7.5-6 0Z",
    "triangle-up": "M0-6.5L7 5.5H-7Z",
    "triangle-down": "M0 6.5L7-5.5H-7Z",
    "cross": "M-2.5-7H2.5V-2.5H7V2.5H2.5V7H-2.5V2.5H-7V-2.5H-2.5Z",
    "triangle-right": "M6.5 0L-5.5 7V-7Z",
    "triangle-left": "M-6.5 0L5.5 7V-7Z",
}


@dataclass(frozen=True)
class Section:
    """A table of the report as the page shows it.

    Attributes:
        blocks: what is said about it, in order.
        plots: its pictures.
        table: None for the section on what is missing.
        paths: of its runs, by name.
    """

    blocks: Sequence[Block]
    plots: Sequence[Plot] = ()
    table: Table | None = None
    paths: Mapping[str, Path] | None = None


@dataclass(frozen=True)
class ArmProgress:
    """How far the runs of an arm have come.

    Attributes:
        share: of all of its steps, from 0 to 1.
        runs: seed, state, and what there is to say, of each run.
        left: time left; "" if unknown.
    """

    arm: str
    share: float
    runs: Sequence[tuple[int, str, str]]
    left: str


@dataclass(frozen=True)
class Progress:
    """How far a study has come.

    Attributes:
        title: of the study.
        about: in one line.
    """

    title: str
    about: str
    share: float
    arms: Sequence[ArmProgress]


def content(
    title: str,
    sections: Sequence[Section],
    plans: Sequence[Plan],
    command: str,
    progress: Sequence[Progress] = (),
    live: bool = False,
    ended: str = "",
) -> str:
    """What the records say, as HTML.

    Args:
        title: of the page.
        sections: in order.
        plans: of the runs, for the commands that train them again.
        command: what was typed to make this page.
        progress: of studies that have not ended.
        live: whether scripts are known to run, so that pictures are not needed.
        ended: how the runs have ended, if all have.
    """
    paths = {run: path for section in sections for run, path in (section.paths or {}).items()}
    tables = [section.table for section in sections if section.table]
    return _template("content").render(
        title=title or "Arms compared",
        version=__version__,
        progress=progress,
        ended=ended,
        sections=[_section(i, section, live) for i, section in enumerate(sections)],
        commands=[*again(tables, plans, paths), command] if tables else [],
        marks=MARKS,
    )


def whole(title: str, content: str, live: bool = False) -> str:
    """The page around a content; a live one asks its server for new content."""
    from markupsafe import Markup

    def asset(name: str) -> Markup:
        return Markup((FOLDER / name).read_text(encoding="utf-8"))

    return _template("page").render(
        title=title or "Arms compared",
        version=__version__,
        live=live,
        content=Markup(content),
        css=asset("page.css"),
        script=asset("page.js"),
        bundle=Markup(bundle()),
        themes=_json(THEMES),
        colours=list(zip(COLOURS, ON_DARK, strict=True)),
    )


@cache
def _template(name: str) -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(f"{name}.html.jinja")


def _json(value: Any) -> Any:
    """JSON for a script element, which no text in it can end."""
    from markupsafe import Markup

    return Markup(json.dumps(value, separators=(",", ":")).replace("<", "\\u003c"))


def _section(number: int, section: Section, live: bool) -> dict[str, Any]:
    """A section in values that the template reads."""
    table, anchor = section.table, f"t{number}"
    blocks = [_block(f"{anchor}b{i}", block) for i, block in enumerate(section.blocks)]
    arms = [_swatch(i, arm.name) for i, arm in enumerate(table.arms)] if table else []
    return {
        "id": anchor,
        "heading": next((block for block in blocks if block["kind"] == "heading"), None),
        "lead": lead(table) if table else "",
        "answers": [_answer(answer) for answer in answers(table)] if table else [],
        "summary": _block(f"{anchor}summary", _summary(table)) if table else None,
        "arms": {arm["name"]: arm for arm in arms},
        "legend": arms[:MOST_ARMS],
        "grids": [block for block in blocks if block["kind"] == "grid"],
        "sentences": [
            block for block in blocks if block["kind"] == "sentences" and block["title"] != ANSWERS
        ],
        "plots": [_plot(f"{anchor}p{i}", plot, live) for i, plot in enumerate(section.plots)],
        "facts": _facts(table) if table else [],
        "runs": [(arm.name, seed, run) for arm in table.arms for seed, run in arm.runs.items()]
        if table
        else [],
    }


def _summary(table: Table) -> Grid:
    """One line an arm, with the columns of the report in the terminal."""
    rows = []
    for arm in table.arms:
        cells = [each.cell(arm, table).text for each in COLUMNS]
        rows.append([(arm.name, ""), *((text, "") for text in cells)])
    kept = [0, *(i for i in range(1, len(COLUMNS) + 1) if any(row[i][0] for row in rows))]
    headers = ["arm", *(each.header or table.primary for each in COLUMNS)]
    return Grid(
        title="Arms at a glance",
        caption="Means over seeds. MaxVio: of micro-batches; 0 is even load. Replay: nats a token "
        "that experts of another domain cost. Domain: domain bits. Differences: paired by seed, "
        "± half of a 95 % interval. ↑ ↓ higher or lower than the baseline, decided at "
        f"{as_percent(table.level)}; ? cannot tell.",
        headers=[headers[i] for i in kept],
        rows=[[row[i] for i in kept] for row in rows],
    )


def _answer(answer: Answer) -> tuple[str, str]:
    """The question and the answer without it, as a sentence of its own."""
    label = LABELS.get(answer.question, answer.question.capitalize())
    text = answer.text.partition(": ")[2] if answer.question in LABELS else answer.text
    text = text.removeprefix(f"{label}: ")
    names_arm_first = answer.question == "quality"
    return label, text if names_arm_first else text[:1].upper() + text[1:]


def _swatch(place: int, name: str) -> dict[str, Any]:
    """An arm's colour, by its number in the theme, and the path of its symbol."""
    shape = SHAPES[symbol(place)]
    return {"name": name, "colour": place % len(COLOURS), "shape": shape}


def _plot(anchor: str, plot: Plot, live: bool) -> dict[str, Any]:
    return {
        "id": anchor,
        "title": plot.title,
        "caption": plot.caption,
        "arms": plot.arms,
        "single": len(plot.panels) == 1,
        "panels": [
            {
                "id": f"{anchor}-{panel.name}",
                "spec": _json(panel.interactive()),
                "height": panel.height + 70,
            }
            for panel in plot.panels
        ],
        "picture": "" if live else plot.image,
    }


def _block(anchor: str, block: Block) -> dict[str, Any]:
    if isinstance(block, Heading):
        return {"kind": "heading", "id": anchor, "title": block.text}
    if isinstance(block, Sentences):
        return {"kind": "sentences", "id": anchor, "title": block.title, "items": block.items}
    assert isinstance(block, Grid)
    return {
        "kind": "grid",
        "id": anchor,
        "title": block.title,
        "short": re.split("[;,]", block.title)[0],
        "caption": block.caption,
        "headers": [header.replace("\n", " ") for header in block.headers],
        "rows": block.rows,
    }


def _facts(table: Table) -> list[tuple[str, str]]:
    """What made the numbers, and what all runs of the table share."""
    sciences = [arm.science for arm in table.arms]
    same = {
        key: value
        for key, value in sciences[0].items()
        if key != "seed" and all(science.get(key) == value for science in sciences)
    }
    made = [(key, ", ".join(values)) for key, values in table.made_with.items()]
    return [*made, *((key, str(value)) for key, value in same.items())]

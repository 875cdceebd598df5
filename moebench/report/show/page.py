"""The report as one HTML file: sortable tables, plots, and the command that makes it again.

The file uses no network: its security policy allows only its own content. The template escapes all
text. Plots are pictures, in which no script in a name can run.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moebench import __version__
from moebench.plans import Plan
from moebench.report.draw.style import Plot
from moebench.report.infer.arms import Table
from moebench.report.paper.verdicts import AGREES, CANNOT_TELL, CONTRADICTS
from moebench.report.show.again import again
from moebench.report.show.blocks import Block, Grid, Heading, Sentences
from moebench.report.show.sentences import lead
from moebench.report.show.table import ANSWERS

FITS_A_PHONE = 500  # points; a wider plot, of several panels, is scrolled there
MARKS = {AGREES: "✓", CONTRADICTS: "✗", CANNOT_TELL: "?"}  # beside the colour, for the colour-blind


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


def page(title: str, sections: Sequence[Section], plans: Sequence[Plan], command: str) -> str:
    """The whole file.

    Args:
        title: of the page.
        sections: in order.
        plans: of the runs, for the commands that train them again.
        command: what was typed to make this page.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        title=title or "Arms compared",
        version=__version__,
        sections=[_section(i, section) for i, section in enumerate(sections)],
        commands=[*again([s.table for s in sections if s.table], plans, _paths(sections)), command],
        marks=MARKS,
    )


def _section(number: int, section: Section) -> dict[str, Any]:
    """A section in values that the template reads."""
    table = section.table
    return {
        "id": f"t{number}",
        "lead": lead(table) if table else "",
        "blocks": _in_order(
            [_block(f"t{number}b{i}", block) for i, block in enumerate(section.blocks)],
            {"kind": "plots", "id": f"t{number}plots", "title": "Plots"} if section.plots else None,
        ),
        "plots": [
            {
                "id": f"t{number}p{i}",
                "title": plot.title,
                "caption": plot.caption,
                "fits": _points(plot.svg) < FITS_A_PHONE,
                "source": "data:image/svg+xml;base64," + base64.b64encode(plot.svg).decode(),
            }
            for i, plot in enumerate(section.plots)
        ],
        "facts": _facts(table) if table else [],
        "runs": [(arm.name, seed, run) for arm in table.arms for seed, run in arm.runs.items()]
        if table
        else [],
    }


def _in_order(blocks: list[dict[str, Any]], plots: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The answers, then the grids, the plots and the other sentences."""
    if plots is None:
        return blocks
    sentences = [
        block for block in blocks if block["kind"] == "sentences" and block["title"] != ANSWERS
    ]
    return [*(block for block in blocks if block not in sentences), plots, *sentences]


def _points(svg: bytes) -> float:
    """The width of a plot."""
    width = re.search(rb'<svg[^>]* width="([\d.]+)pt"', svg)
    assert width
    return float(width[1])


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


def _paths(sections: Sequence[Section]) -> dict[str, Path]:
    return {run: path for section in sections for run, path in (section.paths or {}).items()}

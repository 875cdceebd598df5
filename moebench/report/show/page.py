"""The report as one HTML file: tables that can be sorted, plots, and how to make it all again.

The file needs no network and may not use any: its policy allows only what it holds itself. All
text is escaped by the template; plots are pictures, in which no script of a name could run.
"""

import base64
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moebench import __version__
from moebench.report.draw.plots import Plot
from moebench.report.infer.arms import Table
from moebench.report.paper.findings import AGREES, CANNOT_TELL, CONTRADICTS
from moebench.report.read.studies import Plan
from moebench.report.show import sentences as words
from moebench.report.show.table import Block, Grid, Heading, Sentences

FITS_A_PHONE = 500  # points; a wider plot, of several panels, is scrolled there
MARKS = {AGREES: "✓", CONTRADICTS: "✗", CANNOT_TELL: "?"}  # so that no one needs the colour


@dataclass(frozen=True)
class Section:
    """A table of the report as the page shows it.

    Attributes:
        blocks: what is said about it, in order.
        plots: its pictures.
        table: of which it is; None for what is missing.
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
        sections=[_section(i, each) for i, each in enumerate(sections)],
        commands=_commands(sections, plans, command),
        marks=MARKS,
    )


def _section(number: int, section: Section) -> dict[str, Any]:
    """A section in values that the template reads."""
    table = section.table
    return {
        "id": f"t{number}",
        "lead": words.lead(table) if table else "",
        "blocks": _in_order(
            [_block(f"t{number}b{i}", each) for i, each in enumerate(section.blocks)],
            {"kind": "plots", "id": f"t{number}plots", "title": "Plots"} if section.plots else None,
        ),
        "plots": [
            {
                "id": f"t{number}p{i}",
                "title": each.title,
                "caption": each.caption,
                "fits": _points(each.svg) < FITS_A_PHONE,
                "source": "data:image/svg+xml;base64," + base64.b64encode(each.svg).decode(),
            }
            for i, each in enumerate(section.plots)
        ],
        "facts": _facts(table) if table else [],
        "runs": [(arm.name, seed, run) for arm in table.arms for seed, run in arm.runs.items()]
        if table
        else [],
    }


def _in_order(blocks: list[dict[str, Any]], plots: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Plots stand between the tables and what is said of them."""
    if plots is None:
        return blocks
    tables = [each for each in blocks if each["kind"] != "sentences"]
    return [*tables, plots, *(each for each in blocks if each["kind"] == "sentences")]


def _points(svg: bytes) -> float:
    """How wide a plot is."""
    found = re.search(rb'<svg[^>]* width="([\d.]+)pt"', svg)
    assert found
    return float(found[1])


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
    shared = [arm.science for arm in table.arms]
    same = {
        key: value
        for key, value in shared[0].items()
        if key != "seed" and all(each.get(key) == value for each in shared)
    }
    made = [(key, ", ".join(values)) for key, values in table.made_with.items()]
    return [*made, *((key, str(value)) for key, value in same.items())]


def _commands(sections: Sequence[Section], plans: Sequence[Plan], command: str) -> list[str]:
    """Exactly these runs, from the plan that made them or else from their records; the report."""
    named = {run for s in sections if s.table for arm in s.table.arms for run in arm.runs.values()}
    found, planned = [], set()
    for plan in plans:
        common = [
            each
            for each in plan.overrides[0]
            if all(each in overrides for overrides in plan.overrides)
        ]
        if plan.size and named & {run.run for run in plan.runs}:
            typed = [f"study={plan.name}", f"study.size={plan.size}"]
            found.append(
                f"{shlex.join(['moebench', 'sweep', *typed])}  # with {shlex.join(common)}"
            )
        for run, overrides in zip(plan.runs, plan.overrides, strict=True):
            if run.run in named - planned:
                planned.add(run.run)
                found.append(shlex.join(["moebench", "train", *overrides]))
    for section in sections:
        for run, path in sorted((section.paths or {}).items()):
            if run in named - planned:
                config = ["--config", f"{path}/config.yaml", "--runs-dir", "again"]
                found.append(shlex.join(["moebench", "train", *config]))
    return [*found, command]

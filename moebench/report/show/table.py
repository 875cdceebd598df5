"""Everything that the report says about one table, in order.

The answers come first. The tables begin with what shows after few steps, load and specialisation;
perplexity follows, the paper's findings, and sentences on what the numbers can and cannot tell.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from moebench.plans import PRIMARY
from moebench.records import printable
from moebench.report.infer.arms import Table
from moebench.report.paper.overlap import Overlap
from moebench.report.paper.verdicts import Verdict
from moebench.report.show import findings, gains, grids, headroom, sentences
from moebench.report.show.answers import answers
from moebench.report.show.blocks import Block, Grid, Heading, Sentences

ANSWERS = "Answers"


@dataclass(frozen=True)
class Shown:
    """What a reader asked for.

    Attributes:
        metrics: names; these alone, in one grid. Empty for the usual grids.
        per_domain: whether to add the nats of each domain.
    """

    metrics: tuple[str, ...] = ()
    per_domain: bool = False


def blocks(
    table: Table,
    verdicts: Sequence[Verdict] = (),
    shown: Shown = Shown(),
    overlaps: Sequence[Overlap] = (),
) -> list[Block]:
    """All that is said about one table, in order.

    Args:
        table: the arms and their differences.
        verdicts: what this table says of the paper's findings.
        shown: what the reader asked for.
        overlaps: which domains share experts.
    """
    differs = ", ".join(
        printable(f"{key} at its default" if value is None else f"{key}={value}")
        for key, value in table.differs.items()
    )
    content: list[Block] = [Heading(f"Runs with {differs}")] if differs else []
    content.append(Sentences(ANSWERS, [answer.text for answer in answers(table)]))
    if shown.metrics:
        content.append(grids.chosen_metrics(table, shown.metrics))
    else:
        content += [grids.load(table), *grids.secondary(table), grids.perplexity(table)]
        if table.primary != PRIMARY:
            content.append(grids.primary_endpoint(table))
    if shown.per_domain:
        content.append(grids.domains(table))
    content += [*grids.cost(table), *grids.scopes(table), *headroom.blocks(table)]
    content += [*gains.grids(table), *findings.blocks(verdicts, overlaps)]
    content += [
        Sentences("What the numbers can and cannot tell", sentences.verdicts(table)),
        Sentences("How far these runs reach", sentences.limits(table)),
        Sentences("Load and specialisation in words", sentences.load(table)),
        Sentences("Caution", sentences.cautions(table)),
    ]
    return [
        _without_empty_columns(block) if isinstance(block, Grid) else block
        for block in content
        if not isinstance(block, Sentences) or block.items
    ]


def _without_empty_columns(grid: Grid) -> Grid:
    """Drop columns that are empty for every arm, such as the paired t below three seeds."""
    kept = [i for i in range(len(grid.headers)) if i == 0 or any(any(row[i]) for row in grid.rows)]
    rows = [[row[i] for i in kept] for row in grid.rows]
    return replace(grid, headers=[grid.headers[i] for i in kept], rows=rows)

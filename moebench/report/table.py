"""The report as blocks - headings, grids of numbers, sentences - and blocks as text or Markdown.

What shows after few steps comes first: load and specialisation, then perplexity, then in words
what the numbers can and cannot tell. User text never meets a markup parser: rich gets `Text`,
Markdown gets it escaped.
"""

import html
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from moebench.records import printable
from moebench.report import words
from moebench.report.arms import Arm, Described, Table, percent
from moebench.report.reading import PRIMARY, SCOPES
from moebench.report.statistics import FEWEST_SEEDS

WIDTH = 100
NARROWEST_NAME = 10
Cell = tuple[str, str]  # what is said first, and what stands below it


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Sentences:
    """A list under a title, one sentence an item."""

    title: str
    items: Sequence[str]


@dataclass(frozen=True)
class Grid:
    """Rows under headers; the first column names the row, all others are numbers."""

    title: str
    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[Cell]]


Block = Heading | Sentences | Grid


def blocks(table: Table) -> list[Block]:
    """All that is said about one table, in order."""
    differs = ", ".join(
        printable(f"{key} at its default" if value is None else f"{key}={value}")
        for key, value in table.differs.items()
    )
    found: list[Block] = [Heading(f"Runs with {differs}")] if differs else []
    found += [_load_grid(table), _perplexity_grid(table)]
    if table.primary != PRIMARY:
        found.append(_primary_grid(table))
    found += [
        Sentences("What the numbers can and cannot tell", words.verdicts(table)),
        Sentences("How far these runs reach", words.limits(table)),
        Sentences("Load and specialisation in words", words.load(table)),
        Sentences("Caution", words.cautions(table)),
    ]
    return [each for each in found if not isinstance(each, Sentences) or each.items]


def _load_grid(table: Table) -> Grid:
    columns = [
        *((f"MaxVio\n{scope}", f"load/max_vio_{scope}", 2) for scope in SCOPES),
        ("load\nentropy", "load/entropy", 3),
        ("dead\nshare", "load/dead_experts", 3),
        ("domain\nbits", "specialization/domain", 3),
    ]
    rows = [
        [
            (arm.name, ""),
            (str(len(arm.seeds)), ""),
            (_count(arm.sequences), ""),
            (_count(arm.group_tokens), ""),
            *(_mean(arm.metrics.get(name), digits) for _, name, digits in columns),
        ]
        for arm in table.arms
    ]
    if table.random:
        random = [(_range(table.random.get(scope)), "") for scope in SCOPES]
        rows.append([("random routing", ""), *[("", "")] * 3, *random, *[("", "")] * 3])
    return Grid(
        title="Load and specialisation",
        caption="Means over seeds, ± half of a 95 % interval from 3 seeds. Group: whose counts the "
        "balance loss averages. MaxVio: largest load over the mean, less 1, in a micro-batch, a "
        "step and the validation set; 0 is even. Load entropy: 1 is even. Domain bits: what an "
        "expert tells of the domain.",
        headers=["arm", "seeds", "group\nseqs", "group\ntokens", *(each[0] for each in columns)],
        rows=rows,
    )


def _perplexity_grid(table: Table) -> Grid:
    rows = []
    for arm in table.arms:
        nats = arm.metrics.get("valid/nats")
        rows.append(
            [
                (arm.name, ""),
                (str(len(arm.seeds)), ""),
                _mean(nats, 4),
                (_perplexity(arm.metrics.get("valid/ppl")), ""),
                _mean(arm.metrics.get("valid/bits_per_byte"), 4),
                *_differences(table, arm, PRIMARY),
                _percent(nats),
            ]
        )
    tested = table.primary == PRIMARY
    return Grid(
        title=f"Perplexity; differences are to {table.baseline}",
        caption="Means ± as above: validation nats a token, their exponential, and bits a byte. "
        "Difference in nats: "
        + ("95 % for all arms together, adjusted p" if tested else "not tested")
        + "; paired t: 95 % for one arm alone; percent: of perplexity.",
        headers=[
            *("arm", "seeds", "nats a\ntoken", "PPL", "bits a\nbyte"),
            *("difference", "paired t", "percent"),
        ],
        rows=rows,
    )


def _primary_grid(table: Table) -> Grid:
    rows = [
        [
            (arm.name, ""),
            (str(len(arm.seeds)), ""),
            _mean(arm.metrics.get(table.primary), 4),
            *_differences(table, arm, table.primary),
        ]
        for arm in table.arms
    ]
    return Grid(
        title=f"Primary endpoint {table.primary}; differences are to {table.baseline}",
        caption="Difference: 95 % for all arms together, adjusted p; paired t: for one arm alone.",
        headers=["arm", "seeds", "mean", "difference", "paired t"],
        rows=rows,
    )


def _differences(table: Table, arm: Arm, metric: str) -> tuple[Cell, Cell]:
    """The tested difference and the paired t beside it; of a metric not tested, only the latter."""
    described, none = arm.metrics.get(metric), ("", "")
    if described is None or described.difference is None:
        return none, none
    if metric != table.primary or arm.name not in table.comparisons.arms:
        ends = described.difference_low, described.difference_high
        return none, (words.signed(described.difference), _interval(*ends))
    comparison = table.comparisons.arms[arm.name]
    value, low, high = words.signed(described.difference), *_ends(described)
    p = words.p_value(described.p)
    below = _interval(low, high)
    if not below and 1 < len(comparison.per_seed) < FEWEST_SEEDS:
        below = " and ".join(words.signed(each) for each in comparison.per_seed.values())
    first: Cell = (f"{value}  {p}".strip(), below)
    paired = comparison.paired
    if paired is None:
        return first, none
    return first, (words.p_value(paired.p), _interval(paired.low, paired.high))


def _ends(described: Described) -> tuple[float | None, float | None]:
    return described.difference_low, described.difference_high


def _percent(nats: Described | None) -> Cell:
    if nats is None or (value := percent(nats.difference)) is None:
        return "", ""
    low, high = (percent(end) for end in _ends(nats))
    below = f"{low:.2f} to {high:.2f}" if low is not None and high is not None else ""
    return f"{round(value, 2) + 0.0:.2f}", below


def _mean(described: Described | None, digits: int) -> Cell:
    if described is None or described.mean is None:
        return "-", ""
    half = ""
    if described.low is not None and described.high is not None:
        half = f"±{(described.high - described.low) / 2:.{digits}f}"
    return f"{described.mean:.{digits}f}", half


def _perplexity(described: Described | None) -> str:
    if described is None or described.mean is None:
        return "-"
    return f"{described.mean:.3f}" if described.mean < 100 else f"{described.mean:,.0f}"


def _interval(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return ""
    return f"{words.signed(low)} to {words.signed(high)}"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _range(values: tuple[float, float] | None) -> str:
    if values is None:
        return "-"
    low, high = (f"{value:.2f}" for value in values)
    return low if low == high else f"{low}-{high}"


# As text


def as_text(content: Iterable[Block]) -> str:
    """For a terminal or a file: plain, at most 100 columns wide."""
    console = Console(
        file=io.StringIO(), width=WIDTH, color_system=None, highlight=False, emoji=False
    )
    for block in content:
        console.print(*_rich(block), sep="\n")
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def _rich(block: Block) -> list[Any]:
    if isinstance(block, Heading):
        return [Text(block.text, style="bold"), ""]
    if isinstance(block, Sentences):
        bullets = [_bullet(item) for item in block.items]
        return [Text(block.title, style="bold"), *bullets, ""]
    grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    grid.add_column(Text(block.headers[0]), overflow="fold", min_width=NARROWEST_NAME)
    keep = _fits(block)  # names give way to numbers, and numbers wrap rather than lose a digit
    for header in block.headers[1:]:
        grid.add_column(Text(header), justify="right", no_wrap=keep, overflow="fold")
    for row in block.rows:
        grid.add_row(*(Text(_stacked(cell)) for cell in row))
    return [Text(block.title, style="bold"), grid, Text(block.caption), ""]


def _fits(block: Grid) -> bool:
    """Whether the numbers leave room for the names."""
    cells = zip(
        block.headers, *([_stacked(cell) for cell in row] for row in block.rows), strict=True
    )
    widths = [max(len(line) for cell in column for line in cell.split("\n")) for column in cells]
    return NARROWEST_NAME + sum(2 + width for width in widths[1:]) <= WIDTH


def _stacked(cell: Cell) -> str:
    return "\n".join(filter(None, cell))


def _bullet(item: str) -> RichTable:
    grid = RichTable.grid(padding=(0, 1, 0, 0))
    grid.add_column()
    grid.add_column(overflow="fold")
    grid.add_row("-", Text(item))
    return grid


# As Markdown


def as_markdown(content: Iterable[Block]) -> str:
    """GitHub-flavoured Markdown."""
    return "\n\n".join(filter(None, map(_markdown, content))) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"## {_escaped(block.text)}"
    if isinstance(block, Sentences):
        return "\n".join(
            [f"### {_escaped(block.title)}", "", *(f"- {_escaped(i)}" for i in block.items)]
        )
    lines = [
        f"### {_escaped(block.title)}",
        "",
        _line(_escaped(header) for header in block.headers),
        _line("---" if i == 0 else "--:" for i in range(len(block.headers))),
        *(_line(_escaped(_flat(cell)) for cell in row) for row in block.rows),
        "",
        _escaped(block.caption),
    ]
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _flat(cell: Cell) -> str:
    main, below = cell
    if not below or not main or below.startswith("±"):
        return f"{main} {below}".strip()
    return f"{main} ({below})"


def _escaped(text: str) -> str:
    """Text as text: no tag, link, emphasis, code or cell border is left in it."""
    return re.sub(r"([\\`*\[\]|~])", r"\\\1", html.escape(text.replace("\n", " "), quote=False))

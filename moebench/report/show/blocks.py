"""The parts of a report: headings, grids of cells, and lists of sentences."""

from collections.abc import Sequence
from dataclasses import dataclass

Cell = tuple[str, str]  # the main text, and what stands below it


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

"""The report in one screen: the answers, one line an arm, and what else there is to read."""

from collections.abc import Callable, Mapping, Sequence, Set
from typing import NamedTuple

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from moebench.catalogue import find
from moebench.records import printable
from moebench.report.infer.arms import BITS, Arm, Table
from moebench.report.infer.decisions import Decision
from moebench.report.infer.statistics import Estimate
from moebench.report.show.answers import DOMAIN, LOAD, REPLAY, answers
from moebench.report.show.numbers import as_percent, four_decimals, p_value

LINES = 40  # of the whole report
NARROWEST = 80
WIDEST_NAME = 28
GAP = 2


class Cell(NamedTuple):
    """A cell of the table, and how a terminal shows it."""

    text: str
    style: str = ""


class Column(NamedTuple):
    """A column of the table, headed by the primary endpoint where `header` is "".

    Columns of a higher rank are dropped first where room lacks.
    """

    header: str
    rank: int
    cell: Callable[[Arm, Table], Cell]


GOOD, BAD, NEITHER, UNDECIDED = "green", "red", "bold", "yellow"  # how a verdict is shown


def brief(title: str, tables: Sequence[Table], missing: Sequence[str], width: int) -> list[Text]:
    """At most 40 lines, none wider than the given width (at least 80).

    Args:
        title: of the report.
        tables: of the report; those for which room lacks are counted.
        missing: one line each on runs that are not finished or were left out.
        width: of the terminal, in columns.
    """
    width = max(width, NARROWEST)
    levels = {as_percent(table.level) for table in tables if _marked(table)}
    foot = [Text(text, "dim") for text in _foot(missing, width, sorted(levels))]
    lines = [Text(text, "bold") for text in wrapped(title, width)[:2]] if title else []
    lines += [Text()] * bool(lines)
    for index, table in enumerate(tables):
        room = LINES - len(lines) - len(foot) - 1
        part = _table(table, width, room)
        if part is None:
            rest = len(tables) - index
            lines.append(Text(f"{rest} more table{'s' * (rest != 1)}: --full shows them"))
            break
        lines += part
    return [*lines, *foot]


def _table(table: Table, width: int, room: int) -> list[Text] | None:
    """The answers and the arms of one table; None where room lacks for them."""
    head: list[Text] = []
    if table.differs:
        keys = ", ".join(f"{key}={value}" for key, value in table.differs.items())
        head += [Text(_cut(printable(f"Runs with {keys}"), width), "bold")]
    found = answers(table)
    for answer in found:
        first, *rest = wrapped(answer.text, width, "  ")
        label = first.partition(":")[0]
        head += [Text.assemble((label, "bold"), first.removeprefix(label)), *map(Text, rest)]
    if head:
        head.append(Text())
    shown = _fewer(table, {answer.arm for answer in found}, room - len(head) - 3)
    if not shown:
        return None
    left = len(table.arms) - len(shown)
    lines = [*head, *_grid(shown, table, width)]
    if left:
        lines.append(Text(f"{left} more arm{'s' * (left != 1)}: --full shows them"))
    return [*lines, Text()]


def _fewer(table: Table, named: Set[str], room: int) -> list[Arm]:
    """As many arms as there is room for: the baseline, those that answers name, then the first."""
    ranked = sorted(table.arms, key=lambda arm: arm.name not in {table.baseline, *named})
    kept = {arm.name for arm in ranked[: max(0, room)]}
    return [arm for arm in table.arms if arm.name in kept]


def _grid(arms: Sequence[Arm], table: Table, width: int) -> list[Text]:
    """A header and a line an arm; whole columns are dropped, and no number is broken."""
    cells = [
        [Cell(column.header or table.primary, "bold"), *(column.cell(arm, table) for arm in arms)]
        for column in COLUMNS
    ]
    names = [Cell("arm", "bold"), *(Cell(_cut(arm.name, WIDEST_NAME)) for arm in arms)]
    room = width - _widest(names)
    kept = set()
    for at in sorted(range(len(COLUMNS)), key=lambda at: COLUMNS[at].rank):
        needed = GAP + _widest(cells[at])
        if any(cell.text for cell in cells[at][1:]) and needed <= room:
            kept.add(at)
            room -= needed
    lines = [Text() for _ in names]
    for number, column in enumerate([names, *(cells[at] for at in sorted(kept))]):
        widest = _widest(column)
        for line, cell in zip(lines, column, strict=True):
            blanks = " " * (widest - cell_len(cell.text))
            line.append(f"{' ' * GAP}{blanks}" if number else "")  # numbers to the right
            line.append(cell.text, cell.style)
            line.append("" if number else blanks)
    for line in lines:
        line.rstrip()
    return lines


def _widest(cells: Sequence[Cell]) -> int:
    return max(cell_len(cell.text) for cell in cells)


def _difference(arm: Arm, table: Table) -> Cell:
    """To the control, ± half of the interval of the paired t."""
    if arm.name not in table.comparisons.arms:
        return Cell("")
    alone, half = _alone(arm, table), ""
    if alone.low is not None and alone.high is not None:
        half = f" ±{(alone.high - alone.low) / 2:.4f}"
    return _with_mark(four_decimals(alone.value) + half, arm, table.primary, table.decisions)


def _alone(arm: Arm, table: Table) -> Estimate:
    """The difference on which a verdict rests."""
    comparison = table.comparisons.arms[arm.name]
    return comparison.paired or comparison.adjusted


def _p(arm: Arm, table: Table) -> Cell:
    decision = table.decisions.get(arm.name)
    return Cell("" if decision is None else p_value(decision.p).removeprefix("p "))


def _with_mark(text: str, arm: Arm, name: str, decisions: Mapping[str, Decision]) -> Cell:
    """A number with the mark of its verdict, in a column where any number may have one."""
    if all(decision.p is None for decision in decisions.values()):
        return Cell(text)
    decision = decisions.get(arm.name)
    if decision is None or decision.p is None:
        return Cell(f"{text}  ")
    mark = ("↓" if decision.estimate.value < 0 else "↑") if decision.decided else "?"
    return Cell(f"{text} {mark}", _style(decision, name))


def _style(decision: Decision, name: str) -> str:
    """How a verdict is shown: whether it is decided, and to the better."""
    if not decision.decided:
        return UNDECIDED
    metric = find(name)
    direction = metric.direction if metric else "neither"
    if direction == "neither":
        return NEITHER
    return GOOD if (decision.estimate.value < 0) == (direction == "lower") else BAD


def _marked(table: Table) -> bool:
    """Whether anything has a verdict, which a mark shows."""
    of_metrics = [table.decisions, *table.secondary_decisions.values()]
    return any(each.p is not None for of_arms in of_metrics for each in of_arms.values())


def _mean(name: str, form: str) -> Callable[[Arm, Table], Cell]:
    """The mean of a metric, with the mark of its verdict if it is a secondary endpoint."""

    def cell(arm: Arm, table: Table) -> Cell:
        metric = arm.metrics.get(name)
        if metric is None or metric.mean is None:
            return Cell("")
        decisions = table.secondary_decisions.get(name, {})
        return _with_mark(format(metric.mean, form), arm, name, decisions)

    return cell


def _primary(arm: Arm, table: Table) -> Cell:
    return _mean(table.primary, ".4f")(arm, table)


COLUMNS = (
    Column("seeds", 7, lambda arm, table: Cell(str(len(arm.seeds)))),
    Column("", 0, _primary),
    Column("difference", 1, _difference),
    Column("p", 5, _p),
    Column("MaxVio", 2, _mean(LOAD, ".2f")),
    Column("replay", 3, _mean(REPLAY, ".4f")),
    Column("domain", 4, _mean(DOMAIN, ".3f")),
    Column("dead", 8, _mean("load/dead_experts", ".3f")),
    Column("MaxVio global", 6, _mean("load/max_vio_global", ".2f")),
    Column("bits a byte", 9, _mean(BITS, ".4f")),
)


def _foot(missing: Sequence[str], width: int, levels: Sequence[str]) -> list[str]:
    """What is missing, and what the numbers mean.

    Args:
        levels: at which marks are given; none without marks.
    """
    more = len(missing) - 2
    lines = [_cut(text, width) for text in missing[:2]]
    if more > 0:
        lines.append(
            f"and {more} more that {'is' if more == 1 else 'are'} not finished or left out"
        )
    lines += wrapped(
        "Means over seeds. MaxVio: of micro-batches; replay: replay cost; domain: domain bits. "
        "Differences: paired by seed, ± half of a 95 % interval."
        + f" ↑ ↓ higher or lower than the baseline, decided at {' or '.join(levels)}; ? cannot "
        "tell."
        * bool(levels)
        + " All tables, findings, limits and cautions: --full, or --html FILE for a page.",
        width,
    )
    return lines


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Text in lines of a width, broken at blanks alone unless a word is wider than a line."""
    console = Console(width=width, color_system=None)
    lines = Text(text).wrap(console, width - len(indent))
    return [indent * (i > 0) + line.plain.rstrip() for i, line in enumerate(lines)]


def _fitting(text: str, width: int) -> str:
    """The longest beginning of a text that a width holds."""
    end = len(text)
    while end and cell_len(text[:end]) > width:
        end -= 1
    return text[:end]


def _cut(text: str, width: int) -> str:
    return text if cell_len(text) <= width else _fitting(text, width - 1) + "…"

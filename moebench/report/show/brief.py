"""The report in one screen: the answers, one line an arm, and what else there is to read."""

from collections.abc import Callable, Sequence, Set
from typing import NamedTuple

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from moebench.records import printable
from moebench.report.infer.arms import Arm, Table
from moebench.report.infer.statistics import Estimate
from moebench.report.show.answers import DOMAIN, LOAD, answers
from moebench.report.show.numbers import four_decimals, p_value

LINES = 40  # of the whole report
NARROWEST = 80
WIDEST_NAME = 28
GAP = 2


class Column(NamedTuple):
    """A column of the table, headed by the primary endpoint where `header` is "".

    Columns of a higher rank are dropped first where room lacks.
    """

    header: str
    rank: int
    cell: Callable[[Arm, Table], str]


class Line(NamedTuple):
    """A line and how it is shown on a terminal: `bold`, `dim` or ""."""

    text: str
    style: str = ""


def brief(title: str, tables: Sequence[Table], missing: Sequence[str], width: int) -> list[Line]:
    """At most 40 lines, none wider than the given width (at least 80).

    Args:
        title: of the report.
        tables: of the report; those for which room lacks are counted.
        missing: one line each on runs that are not finished or were left out.
        width: of the terminal, in columns.
    """
    width = max(width, NARROWEST)
    foot = [Line(text, "dim") for text in _foot(missing, width)]
    lines = [Line(text, "bold") for text in wrapped(title, width)[:2]] if title else []
    lines += [Line("")] * bool(lines)
    for index, table in enumerate(tables):
        room = LINES - len(lines) - len(foot) - 1
        part = _table(table, width, room)
        if part is None:
            rest = len(tables) - index
            lines.append(Line(f"{rest} more table{'s' * (rest != 1)}: --full shows them"))
            break
        lines += part
    return [*lines, *foot]


def _table(table: Table, width: int, room: int) -> list[Line] | None:
    """The answers and the arms of one table; None where room lacks for them."""
    head: list[Line] = []
    if table.differs:
        keys = ", ".join(f"{key}={value}" for key, value in table.differs.items())
        head += [Line(_cut(printable(f"Runs with {keys}"), width), "bold")]
    found = answers(table)
    for answer in found:
        head += [Line(text) for text in wrapped(answer.text, width, "  ")]
    if head:
        head.append(Line(""))
    shown = _fewer(table, {answer.arm for answer in found}, room - len(head) - 3)
    if not shown:
        return None
    left = len(table.arms) - len(shown)
    header, *rows = _grid(shown, table, width)
    lines = [*head, Line(header, "bold"), *(Line(row) for row in rows)]
    if left:
        lines.append(Line(f"{left} more arm{'s' * (left != 1)}: --full shows them"))
    return [*lines, Line("")]


def _fewer(table: Table, named: Set[str], room: int) -> list[Arm]:
    """As many arms as there is room for: the baseline, those that answers name, then the first."""
    ranked = sorted(table.arms, key=lambda arm: arm.name not in {table.baseline, *named})
    kept = {arm.name for arm in ranked[: max(0, room)]}
    return [arm for arm in table.arms if arm.name in kept]


def _grid(arms: Sequence[Arm], table: Table, width: int) -> list[str]:
    """A header and a line an arm; whole columns are dropped, and no number is broken."""
    cells = [[column.cell(arm, table) for arm in arms] for column in COLUMNS]
    headers = [column.header or table.primary for column in COLUMNS]
    names = [_cut(arm.name, WIDEST_NAME) for arm in arms]
    room = width - max(map(cell_len, ["arm", *names]))
    kept = set()
    for at in sorted(range(len(COLUMNS)), key=lambda at: COLUMNS[at].rank):
        needed = GAP + max(map(cell_len, [headers[at], *cells[at]]))
        if any(cells[at]) and needed <= room:
            kept.add(at)
            room -= needed
    columns = [[headers[at], *cells[at]] for at in sorted(kept)]
    padded = [_left(["arm", *names]), *map(_right, columns)]
    return [(" " * GAP).join(row).rstrip() for row in zip(*padded, strict=True)]


def _difference(arm: Arm, table: Table) -> str:
    """To the control, ± half of the interval of the paired t."""
    if arm.name not in table.comparisons.arms:
        return ""
    alone = _alone(arm, table)
    if alone.low is None or alone.high is None:
        return four_decimals(alone.value)
    return f"{four_decimals(alone.value)} ±{(alone.high - alone.low) / 2:.4f}"


def _alone(arm: Arm, table: Table) -> Estimate:
    """The difference on which a verdict rests."""
    comparison = table.comparisons.arms[arm.name]
    return comparison.paired or comparison.adjusted


def _verdict(arm: Arm, table: Table) -> str:
    decision = table.decisions.get(arm.name)
    if decision is None or decision.p is None:
        return ""
    if not decision.decided:
        return f"cannot tell, {p_value(decision.p)}"
    return f"{'lower' if _alone(arm, table).value < 0 else 'higher'}, {p_value(decision.p)}"


def _mean(name: str, form: str) -> Callable[[Arm, Table], str]:
    def cell(arm: Arm, table: Table) -> str:
        metric = arm.metrics.get(name)
        return "" if metric is None or metric.mean is None else format(metric.mean, form)

    return cell


def _primary(arm: Arm, table: Table) -> str:
    return _mean(table.primary, ".4f")(arm, table)


COLUMNS = (
    Column("seeds", 6, lambda arm, table: str(len(arm.seeds))),
    Column("", 0, _primary),
    Column("difference", 1, _difference),
    Column("verdict", 2, _verdict),
    Column("MaxVio", 3, _mean(LOAD, ".2f")),
    Column("domain bits", 4, _mean(DOMAIN, ".3f")),
    Column("dead", 7, _mean("load/dead_experts", ".3f")),
    Column("MaxVio global", 5, _mean("load/max_vio_global", ".2f")),
    Column("bits a byte", 8, _mean("valid/bits_per_byte", ".4f")),
)


def _foot(missing: Sequence[str], width: int) -> list[str]:
    more = len(missing) - 2
    lines = [_cut(text, width) for text in missing[:2]]
    if more > 0:
        lines.append(
            f"and {more} more that {'is' if more == 1 else 'are'} not finished or left out"
        )
    lines += wrapped(
        "Means over seeds; MaxVio: of micro-batches. Differences: paired by seed, ± half of a "
        "95 % interval. All tables, findings, limits and cautions: --full, or --html FILE for a "
        "page.",
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


def _left(texts: Sequence[str]) -> list[str]:
    widest = max(map(cell_len, texts))
    return [text + " " * (widest - cell_len(text)) for text in texts]


def _right(texts: Sequence[str]) -> list[str]:
    widest = max(map(cell_len, texts))
    return [" " * (widest - cell_len(text)) + text for text in texts]

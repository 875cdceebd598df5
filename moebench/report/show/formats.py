"""Blocks as text, Markdown or LaTeX. All text from users is escaped."""

import html
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from moebench.report.show.blocks import Block, Cell, Grid, Heading, Sentences

WIDTH = 100
NARROWEST_NAME, WIDEST_WORD = 10, 24  # characters of the column of names, of a word in it


# As text


def as_text(content: Iterable[Block], width: int = WIDTH) -> str:
    """For a terminal or a file: plain, at most so many columns wide."""
    console = Console(
        file=io.StringIO(), width=width, color_system=None, highlight=False, emoji=False
    )
    for block in content:
        console.print(*_rich(block, width), sep="\n")
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def _rich(block: Block, width: int) -> list[Any]:
    if isinstance(block, Heading):
        return [Text(block.text, style="bold"), ""]
    if isinstance(block, Sentences):
        bullets = [_bullet(item) for item in block.items]
        return [Text(block.title, style="bold"), *bullets, ""]
    first, *others = _columns(block, width)
    grids: list[Any] = [_grid(block, block.rows, first, width)]
    for columns in others:  # what has no number there is not repeated
        rows = [row for row in block.rows if any(_stacked(row[column]) for column in columns)]
        grids += ["", _grid(block, rows, columns, width)]
    return [Text(block.title, style="bold"), *grids, Text(block.caption), ""]


def _grid(
    block: Grid, rows: Iterable[Sequence[Cell]], columns: Iterable[int], whole: int
) -> RichTable:
    grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    least = _name_width(block)
    widths = {column: min(_width(block, column), whole - least - 2) for column in columns}
    room = whole - sum(2 + width for width in widths.values())  # or the last column would be cut
    grid.add_column(Text(block.headers[0]), overflow="fold", min_width=least, max_width=room)
    for column, width in widths.items():
        grid.add_column(
            Text(block.headers[column]), justify="right", overflow="fold", min_width=width
        )
    for row in rows:
        grid.add_row(*(Text(_stacked(row[column])) for column in (0, *columns)))
    return grid


def _columns(block: Grid, whole: int) -> list[list[int]]:
    """Distribute the columns of numbers over as few grids as leave room for the names."""
    grids: list[list[int]] = [[]]
    room = whole - _name_width(block)
    for column in range(1, len(block.headers)):
        width = 2 + _width(block, column)
        if width > room and grids[-1]:
            grids.append([])
            room = whole - _name_width(block)
        grids[-1].append(column)
        room -= width
    return grids


def _name_width(block: Grid) -> int:
    """The least width of names: their longest word is not broken, unless it is very long."""
    words = [word for row in block.rows for word in _stacked(row[0]).split()]
    return max(NARROWEST_NAME, min(WIDEST_WORD, max(map(len, words), default=0)))


def _width(block: Grid, column: int) -> int:
    """The width of a column that breaks no number; its header may break at blanks."""
    lines = [line for row in block.rows for line in _stacked(row[column]).split("\n")]
    return max(map(len, [*lines, *block.headers[column].split()]))


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
    """Escape what Markdown reads as a tag, a link, emphasis, code or the border of a cell."""
    return re.sub(r"([\\`*\[\]|~])", r"\\\1", html.escape(text.replace("\n", " "), quote=False))


# As LaTeX

_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "`": r"\textasciigrave{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "−": "--",
    "\ufffd": r"\textbackslash{}ufffd",  # LuaTeX takes it for a broken file
    '"': "''",
}
LATEX_HEAD = r"""% \usepackage[T1]{fontenc} \usepackage{array,booktabs,graphicx}
% pdfLaTeX shows letters that it lacks by number; LuaLaTeX and XeLaTeX show what their font has.
\providecommand\letters{}
\DeclareRobustCommand\letters[2]{\ifdefined\directlua#1\else\ifdefined\XeTeXversion#1\else#2\fi\fi}
"""
FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
WIDEST_NAME = 30  # characters of a name that is not broken into lines
LONGEST_WORD = 24  # characters after which a word may be broken anywhere


def as_latex(content: Iterable[Block]) -> str:
    """Paragraphs, lists and `booktabs` tables, for `\\input` in a document.

    A table that is wider than a line is scaled down.
    """
    return LATEX_HEAD + "\n" + "\n\n".join(filter(None, map(_latex, content))) + "\n"


def _latex(block: Block) -> str:
    if isinstance(block, Heading):
        return f"\\section*{{{_tex(block.text)}}}"
    if isinstance(block, Sentences):
        items = "\n".join(f"  \\item {_tex(item)}" for item in block.items)
        head = f"\\paragraph{{{_tex(block.title)}}}"
        return f"{head}\n\\begin{{itemize}}\n{items}\n\\end{{itemize}}"
    rows = [
        *(_tex_row(part) for part in _stacked_row([(header, "") for header in block.headers])),
        "\\midrule",
        *(_tex_row(part) for row in block.rows for part in _stacked_row(row)),
    ]
    body = "\n".join(f"    {row}" for row in rows)
    longest = max((len(part) for row in block.rows for part in row[0]), default=0)
    name = r">{\raggedright\arraybackslash}p{16em}" if longest > WIDEST_NAME else "l"
    columns = name + "r" * (len(block.headers) - 1)
    return (
        f"\\begin{{table}}\n  \\caption{{\\textbf{{{_tex(block.title)}.}} {_tex(block.caption)}}}\n"
        f"  {FITTED}\n  \\begin{{tabular}}{{{columns}}}\n    \\toprule\n{body}\n    \\bottomrule\n"
        "  \\end{tabular}}\n\\end{table}"
    )


def _stacked_row(row: Iterable[Cell]) -> list[list[str]]:
    """A row of cells as lines of a table: what stands below the main text has its own line."""
    parts = [[line for part in cell if part for line in part.split("\n")] for cell in row]
    height = max(1, *(len(part) for part in parts))
    return [[part[i] if i < len(part) else "" for part in parts] for i in range(height)]


def _tex_row(cells: Iterable[str]) -> str:
    return " & ".join(map(_tex, cells)) + r" \\"


def _tex(text: str) -> str:
    """Escape text; set the signs of numbers as LaTeX does, and join no two characters."""
    words = [_tex_word(word) for word in text.replace("\n", " ").split(" ")]
    text = " ".join(words)
    return f"{{}}{text}" if text.startswith(("[", "*")) else text  # options of \\ and \item


def _tex_word(word: str) -> str:
    parts = [word]
    if len(word) > LONGEST_WORD:
        parts = [word[i : i + 8] for i in range(0, len(word), 8)]
    return r"\allowbreak{}".join(
        "".join(map(_tex_part, re.findall(r"[^\0-\xff±−]+|[\0-\xff±−]+", part))) for part in parts
    )


def _tex_part(part: str) -> str:
    if part[0] > "\xff" and part[0] not in _LATEX:
        return (
            f"\\letters{{{part}}}{{"
            + "".join(rf"\textbackslash{{}}u{ord(letter):04x}" for letter in part)
            + "}"
        )
    part = re.sub(r"([-,'])(?=\1)", "\\1\0", part)
    number = re.fullmatch(r"(\(?)-([\d.].*)", part)
    if number:
        part = f"{number[1]}\1{number[2]}"
    joined = {"\0": "{}", "\1": "$-$"}
    return "".join(_LATEX.get(sign, joined.get(sign, sign)) for sign in part)

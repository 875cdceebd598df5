"""Blocks as text, Markdown or LaTeX. User text never meets a markup parser unescaped."""

import html
import io
import re
from collections.abc import Iterable
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from moebench.report.show.blocks import Block, Cell, Grid, Heading, Sentences

WIDTH = 100
NARROWEST_NAME, WIDEST_WORD = 10, 24  # columns that names have at least, and one word of them


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
    grids = [_grid(block, columns) for columns in _columns(block)]
    return [Text(block.title, style="bold"), *grids, Text(block.caption), ""]


def _grid(block: Grid, columns: Iterable[int]) -> RichTable:
    grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    least = _name_width(block)
    widths = {column: min(_width(block, column), WIDTH - least - 2) for column in columns}
    room = WIDTH - sum(2 + width for width in widths.values())  # else the last column would be cut
    grid.add_column(Text(block.headers[0]), overflow="fold", min_width=least, max_width=room)
    for column, width in widths.items():
        grid.add_column(
            Text(block.headers[column]), justify="right", overflow="fold", min_width=width
        )
    for row in block.rows:
        grid.add_row(*(Text(_stacked(row[column])) for column in (0, *columns)))
    return grid


def _columns(block: Grid) -> list[list[int]]:
    """The columns of numbers, in as few grids as leave room for the names."""
    grids: list[list[int]] = [[]]
    room = WIDTH - _name_width(block)
    for column in range(1, len(block.headers)):
        width = 2 + _width(block, column)
        if width > room and grids[-1]:
            grids.append([])
            room = WIDTH - _name_width(block)
        grids[-1].append(column)
        room -= width
    return grids


def _name_width(block: Grid) -> int:
    """What names take at least: their longest word is not broken, unless it is very long."""
    words = [word for row in block.rows for word in _stacked(row[0]).split()]
    return max(NARROWEST_NAME, min(WIDEST_WORD, max(map(len, words), default=0)))


def _width(block: Grid, column: int) -> int:
    """What a column takes without breaking a number; its header may break at blanks."""
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
    """Text as text: no tag, link, emphasis, code or cell border is left in it."""
    return re.sub(r"([\\`*\[\]|~])", r"\\\1", html.escape(text.replace("\n", " "), quote=False))


# As LaTeX

_LATEX = {
    **{each: f"\\{each}" for each in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "`": r"\textasciigrave{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "−": "--",
    "\ufffd": r"\textbackslash{}ufffd",  # which LuaTeX takes for a broken file
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
    """Paragraphs, lists and `booktabs` tables, to be put into a document of one's own.

    Tables that are wider than a line are made smaller.
    """
    return LATEX_HEAD + "\n" + "\n\n".join(filter(None, map(_latex, content))) + "\n"


def _latex(block: Block) -> str:
    if isinstance(block, Heading):
        return f"\\section*{{{_tex(block.text)}}}"
    if isinstance(block, Sentences):
        items = "\n".join(f"  \\item {_tex(each)}" for each in block.items)
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
    """A row of cells as lines of a table: what stands below takes lines of its own."""
    parts = [[line for part in cell if part for line in part.split("\n")] for cell in row]
    height = max(1, *(len(part) for part in parts))
    return [[part[i] if i < len(part) else "" for part in parts] for i in range(height)]


def _tex_row(cells: Iterable[str]) -> str:
    return " & ".join(map(_tex, cells)) + r" \\"


def _tex(text: str) -> str:
    """Text as text; signs of numbers as LaTeX sets them, and no two signs that it would join."""
    words = [_tex_word(each) for each in text.replace("\n", " ").split(" ")]
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
            + "".join(rf"\textbackslash{{}}u{ord(e):04x}" for e in part)
            + "}"
        )
    part = re.sub(r"([-,'])(?=\1)", "\\1\0", part)
    number = re.fullmatch(r"(\(?)-([\d.].*)", part)
    if number:
        part = f"{number[1]}\1{number[2]}"
    joined = {"\0": "{}", "\1": "$-$"}
    return "".join(_LATEX.get(each, joined.get(each, each)) for each in part)

"""Figures as rows, which a benchmark prints as Markdown tables or as JSON. Needs no torch."""

import argparse
import json
from collections.abc import Mapping, Sequence

Value = str | int | float | None
Row = Mapping[str, Value]
Tables = dict[str, list[Row]]  # a title and its rows, which all have the columns of the first one


def markdown(rows: Sequence[Row]) -> str:
    """A Markdown table; "" without rows. Numbers stand to the right, an empty cell for None."""
    if not rows:
        return ""
    columns = list(rows[0])
    words = [any(isinstance(row.get(column), str) for row in rows) for column in columns]
    marks = f"|{'|'.join('---' if word else '---:' for word in words)}|"
    cells = [columns, *([cell(row.get(column)) for column in columns] for row in rows)]
    head, *body = (f"| {' | '.join(line)} |" for line in cells)
    return "\n".join([head, marks, *body])


def cell(value: Value) -> str:
    """A figure with four digits at least, or words in one line."""
    if value is None:
        return ""
    if isinstance(value, str):
        return " ".join(value.split()).replace("|", "\\|")
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:#.4g}"


def reason(error: Exception) -> str:
    """An error of whatever library in one line."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"


def at_least_one(text: str) -> int:
    """A typed number. Raises what argparse tells with the name of its argument."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}: must be at least 1")
    return number


def show(tables: Tables, *, as_json: bool) -> None:
    """Print tables to stdout: all of them as one JSON object, or each under its title."""
    if as_json:
        print(json.dumps({"tables": tables}, indent=1))
        return
    for title, rows in tables.items():
        print(f"\n### {title}\n\n{markdown(rows)}", flush=True)

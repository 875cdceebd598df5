"""`moebench diff`: two runs or two studies side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from moebench.cli.options import RUNS, AsJson, RunsDir, completion, path

First = Annotated[
    Path,
    typer.Argument(
        metavar="A",
        parser=path,
        help="a run or a study, by name or path",
        autocompletion=completion("runs_and_studies"),
    ),
]
Second = Annotated[
    Path,
    typer.Argument(
        metavar="B",
        parser=path,
        help="another one to compare with it",
        autocompletion=completion("runs_and_studies"),
    ),
]
Format = Annotated[str, typer.Option("--format", help="table, md, latex or json")]


def diff(
    a: First,
    b: Second,
    form: Format = "table",
    as_json: AsJson = False,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Compare two runs or two studies: their configs, metrics and curves.

    Examples: `moebench diff runs/RUN runs/OTHER`, `moebench diff demo scope`
    """
    print_diff([a, b], runs_dir, "json" if as_json else form)


def print_diff(names: Sequence[Path], runs_dir: Path, form: str) -> None:
    """Print the comparison of two runs or studies; `moebench report diff` calls it too."""
    from moebench.report import compare_two

    print(compare_two(names, runs_dir, form), end="")

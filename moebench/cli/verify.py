"""`moebench verify`: whether finished runs still match their checksums."""

from pathlib import Path
from typing import Annotated

import typer

from moebench.cli.exit_codes import FAILED
from moebench.cli.options import RUNS, AsJson, RunsDir, completion, path
from moebench.cli.output import print_json
from moebench.errors import RecordError

Runs = Annotated[
    list[Path] | None,
    typer.Argument(
        parser=path,
        help="runs, or directories of runs; by default all in --runs-dir",
        autocompletion=completion("runs"),
    ),
]


def verify(runs: Runs = None, as_json: AsJson = False, runs_dir: RunsDir = RUNS) -> None:
    """Check that no file of a finished run was changed, added or lost since it was sealed.

    Examples: `moebench verify`, `moebench verify runs/global-s0-0123456789`
    """
    from moebench.records import find_sealed, printable

    roots = runs or [runs_dir]
    damage = {record.path: record.damage() for root in roots for record in find_sealed(root)}
    if not damage:
        raise RecordError(
            f"{', '.join(map(str, roots))}: contains no finished run; only finished runs are sealed"
        )
    if as_json:
        print_json({"damage": {str(path): lines for path, lines in damage.items()}})
    else:
        for path, lines in damage.items():
            for line in lines or ["complete and unchanged"]:
                print(printable(f"{path}: {line}"))
    if any(damage.values()):
        raise typer.Exit(FAILED)

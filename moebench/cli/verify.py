"""`moebench verify`: whether runs still match their checksums."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moebench.cli.exit_codes import FAILED
from moebench.cli.options import RUNS, AsJson, RunsDir, completion, path
from moebench.cli.output import print_json
from moebench.errors import RecordError

if TYPE_CHECKING:
    from moebench.records import Record

Runs = Annotated[
    list[Path] | None,
    typer.Argument(
        parser=path,
        help="runs, or directories of runs; by default all in --runs-dir",
        autocompletion=completion("runs"),
    ),
]


def verify(runs: Runs = None, as_json: AsJson = False, runs_dir: RunsDir = RUNS) -> None:
    """Check that no file of a run was changed, added or lost since it was sealed.

    An unfinished run is checked up to its last checkpoint.

    Examples: `moebench verify`, `moebench verify runs/global-s0-0123456789`
    """
    from moebench.records import printable

    roots = runs or [runs_dir]
    damage = {record.path: record.damage() for root in roots for record in find_sealed(root)}
    said = {path: lines or ["complete and unchanged"] for path, lines in damage.items()}
    for record in (record for root in roots for record in find_unfinished(root)):
        damage[record.path], state = _unfinished(record)
        said[record.path] = damage[record.path] or [state]
    if not damage:
        raise RecordError(f"{', '.join(map(str, roots))}: contains no run; name one, or --runs-dir")
    if as_json:
        print_json({"damage": {str(path): lines for path, lines in damage.items()}})
    else:
        for path, lines in said.items():
            for line in lines:
                print(printable(f"{path}: {line}"))
    if any(damage.values()):
        raise typer.Exit(FAILED)


def find_sealed(root: Path) -> "list[Record]":
    """The finished runs under a directory, or that directory itself if it is one; by name.

    Raises RecordError if there is no such directory.
    """
    from moebench.records import Record

    if not root.is_dir():
        raise RecordError(f"{root}: is not a directory; name a run, or a folder of runs")
    records = [Record(path) for path in (root, *sorted(root.iterdir()))]
    return [record for record in records if record.is_done()]


def find_unfinished(root: Path) -> "list[Record]":
    """The runs under a directory, or that directory itself, that are not finished; by name."""
    from moebench.records import find_records

    return [record for record in find_records(root) if not record.is_done()]


def _unfinished(record: "Record") -> tuple[list[str], str]:
    """The damage of an unfinished run, and what to say if there is none."""
    from moebench.lock import is_held
    from moebench.protection import CHECKPOINTS, is_protected, steps_kept, unfinished_damage

    if is_held(record):
        return [], "is running; not checked"
    kept = steps_kept(record.path / CHECKPOINTS)
    if not kept:
        return record.unsealed_damage(), "unfinished; has no checkpoint to check against"
    what = "unchanged" if is_protected(record, kept[-1]) else "not protected (an earlier version)"
    return unfinished_damage(record), f"unfinished; {what} up to step {kept[-1]}"

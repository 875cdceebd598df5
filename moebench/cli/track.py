"""`moebench track`: records sent to a tracker."""

from pathlib import Path
from typing import Annotated

import typer

from moebench.cli.options import completion, path
from moebench.cli.output import print_message

Runs = Annotated[
    list[Path],
    typer.Argument(parser=path, help="runs, or folders of them", autocompletion=completion("runs")),
]
To = Annotated[str, typer.Option("--to", metavar="NAME", help="wandb, mlflow or trackio")]


def track(runs: Runs, to: To) -> None:
    """Send records to a tracker: rows, config and pictures. What it has of a run is replaced.

    Example: `moebench track runs/* --to mlflow`
    """
    from moebench.disk import reason
    from moebench.errors import MoebenchError, RecordError
    from moebench.records import find_records
    from moebench.tracking import Mirror
    from moebench.tracking.trackers import WAY, open_tracker

    records = {record.path: record for run in runs for record in find_records(run)}
    if not records:
        raise RecordError(f"{', '.join(map(str, runs))}: holds no runs; name some")
    tracker = open_tracker(to, "--to")
    for number, record in enumerate(records.values(), 1):
        try:
            Mirror(tracker, [record]).update(last=True)
        except MoebenchError:
            raise
        except Exception as error:  # the libraries raise errors of many types
            raise MoebenchError(
                f"--to {to}: {record.path}: cannot be sent ({reason(error)}); {WAY[to]}"
            ) from None
        print_message(f"{record.path}: sent to {to} ({number}/{len(records)})")

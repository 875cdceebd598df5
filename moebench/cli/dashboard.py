"""`moebench dashboard`: TensorBoard on all runs."""

from functools import partial
from typing import Annotated

import typer

from moebench.cli.options import RUNS, AsJson, RunsDir, parse_number
from moebench.cli.output import print_address, print_message

Rebuild = Annotated[
    bool, typer.Option("--rebuild", help="first write all TensorBoard files again from the records")
]
Port = Annotated[
    int | None,
    typer.Option(
        "--port", parser=parse_number, metavar="N", help="port of the page; by default a free one"
    ),
]


def dashboard(
    rebuild: Rebuild = False, port: Port = None, as_json: AsJson = False, runs_dir: RunsDir = RUNS
) -> None:
    """Serve the runs in TensorBoard, to this machine only, until Ctrl-C.

    Examples: `moebench dashboard`, `moebench dashboard --rebuild`
    """
    from moebench.cli.progress import track
    from moebench.dashboard import make_views, records_to_view, serve

    records = records_to_view(runs_dir, rebuild_all=rebuild)
    for problem in track(make_views(records), len(records), "views written"):
        if problem:
            print_message(f"skipped: {problem}")

    serve(runs_dir, port, partial(print_address, as_json=as_json))

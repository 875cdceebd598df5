"""`moebench watch`: the report as a live page while runs train."""

from functools import partial
from typing import Annotated

import typer

from moebench.cli.options import RUNS, AsJson, RunsDir, command_line, completion, parse_number
from moebench.cli.output import print_address, print_message

Study = Annotated[
    str | None,
    typer.Option(
        "--study", help="include only the runs of a study", autocompletion=completion("studies")
    ),
]
Port = Annotated[
    int | None,
    typer.Option(
        "--port", parser=parse_number, metavar="N", help="port of the page; by default 6007"
    ),
]


def watch(
    study: Study = None, port: Port = None, as_json: AsJson = False, runs_dir: RunsDir = RUNS
) -> None:
    """Serve the report as a page that follows its runs, to this machine only, until Ctrl-C.

    Examples: `moebench watch`, `moebench watch --study demo`
    """
    from moebench.watch import Page, serve

    page = Page(runs_dir, study, command_line())
    serve(page, port, partial(print_address, as_json=as_json), print_message)

"""The command line: each command parses its words, calls one function and prints the result.

stdout carries what was asked for; stderr carries progress and errors. A command imports what is
heavy only when it runs, so that `--help` is fast.
"""

# ruff: noqa: E402
from moebench.machine import begin_process

begin_process()  # first, so that it acts on all other imports

import sys
from typing import Annotated

import typer

from moebench import __version__
from moebench.cli import (
    bench,
    conform,
    dashboard,
    data,
    diff,
    doctor,
    evaluate,
    exit_codes,
    export,
    inspect,
    report,
    sample,
    sweep,
    track,
    train,
    tune,
    verify,
    watch,
)

app = typer.Typer(
    name="moebench",
    help="Over which tokens should a Mixture-of-Experts router be balanced, and what does each "
    "choice cost? moebench trains small language models that differ only in this choice, and "
    "compares them.",
    epilog="Exit codes: 0 done, 1 failed, 2 invalid command, key, value or file, 3 some runs of a "
    "sweep failed, 75 stopped by SIGTERM, SIGUSR1 or SIGHUP, 130 stopped by Ctrl-C.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
)
for command in (
    *(train.train, sweep.sweep, tune.tune, report.report, diff.diff, evaluate.evaluate),
    *(inspect.inspect, watch.watch, dashboard.dashboard, export.export, sample.sample),
    *(track.track, verify.verify, bench.bench, doctor.doctor, conform.conform),
):
    app.command()(command)
app.add_typer(data.app, name="data", no_args_is_help=True)


@app.callback(invoke_without_command=True)
def _print_version(
    version: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False,
) -> None:
    if version:
        print(f"moebench {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line and exit."""
    sys.exit(exit_codes.run(app, sys.argv[1:]))

"""`moebench report`: arms compared in tables, plots and a page."""

import os
import shlex
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moebench.cli.diff import print_diff
from moebench.cli.options import RUNS, AsJson, RunsDir, completion, path
from moebench.cli.output import print_message, stdout_console
from moebench.errors import ConfigError

if TYPE_CHECKING:
    from rich.text import Text

    from moebench.report import Report

VERDICTS = {
    "agrees": "green",
    "contradicts": "red",
    "within margin": "cyan",
    "cannot tell|not decided": "yellow",
}
"""How a terminal shows the words of a verdict."""

Directories = Annotated[
    list[Path] | None,
    typer.Argument(
        parser=path,
        help="runs, or directories of runs; by default all in --runs-dir. `diff A B` is the same "
        "as `moebench diff A B`",
        autocompletion=completion("runs"),
    ),
]
Study = Annotated[
    str | None,
    typer.Option(
        "--study", help="include only the runs of a study", autocompletion=completion("studies")
    ),
]
Baseline = Annotated[
    str | None, typer.Option("--baseline", help="arm that the others are compared with")
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where", metavar="KEY=VALUE,..", help="include only matching runs; may be repeated"
    ),
]
By = Annotated[
    list[str] | None,
    typer.Option("--by", metavar="KEY", help="make a table per value; may be repeated"),
]
Metrics = Annotated[
    str | None,
    typer.Option("--metrics", metavar="NAME,..", help="show only these; * and ? are wildcards"),
]
Sort = Annotated[
    str | None,
    typer.Option("--sort", metavar="NAME", help="sort arms by a metric; -NAME for descending"),
]
At = Annotated[
    int | None,
    typer.Option("--at", min=0, metavar="STEP", help="compare at an earlier evaluation"),
]
PerDomain = Annotated[bool, typer.Option("--per-domain", help="add the nats of each domain")]
Format = Annotated[
    str,
    typer.Option(
        "--format",
        help="table, md, csv, json, latex or parquet",
        autocompletion=completion("formats"),
    ),
]
Power = Annotated[
    float | None,
    typer.Option(
        "--power",
        min=1e-9,
        metavar="NATS",
        help="print how many seeds show a difference of so many nats a byte, from A/A twins alone",
    ),
]
Full = Annotated[
    bool, typer.Option("--full", help="print all tables and sentences, not one screen")
]
Plots = Annotated[
    Path | None, typer.Option("--plots", metavar="DIR", help="write plots there, as SVG and PNG")
]
Html = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="write the report as an HTML page")
]


def report(
    directories: Directories = None,
    study: Study = None,
    baseline: Baseline = None,
    where: Where = None,
    by: By = None,
    metrics: Metrics = None,
    sort: Sort = None,
    at: At = None,
    per_domain: PerDomain = False,
    form: Format = "table",
    power: Power = None,
    full: Full = False,
    plots: Plots = None,
    html: Html = None,
    as_json: AsJson = False,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Compare arms: the answers on one screen; all tables and sentences with --full.

    Examples: `moebench report --study demo`, `moebench report --study demo --html report.html`
    """
    form = "json" if as_json else form
    if directories and str(directories[0]) == "diff":
        print_diff(directories[1:], runs_dir, form)
        return
    from moebench.report import make_report

    chosen = {"study": study, "baseline": baseline, "where": where or [], "by": by or []}
    chosen |= {"sort": sort, "at": at, "per_domain": per_domain}
    names = [name for name in (metrics or "").split(",") if name]
    made = make_report(directories or [runs_dir], runs_dir=runs_dir, metrics=names, **chosen)
    if power is not None:
        from moebench.report.show.power import lines

        print("\n".join(lines(made.tables, power)))
        return
    text = made.encode(form)  # first, so that a wrong --format writes no file
    if plots is not None:
        _write_plots(made, plots)
    if html is not None:
        _write_page(made, html, _command(html, **chosen, metrics=metrics))
    elif plots is None or form != "table":
        if form == "table":
            _show(made, full or bool(metrics) or per_domain)
        else:
            _print(text, form)


def _write_plots(report: "Report", directory: Path) -> None:
    from moebench.report import write

    for table in report.tables:
        suffix = f"-{table.index + 1}" if len(report.tables) > 1 else ""
        for plot in report.plots(table):
            write(directory / f"{plot.name}{suffix}.svg", plot.svg)
            write(directory / f"{plot.name}{suffix}.png", plot.png)
    for problem in report.problems:
        print_message(f"warning: left out of the plots: {problem}")
    print_message(f"{directory}: contains the plots")


def _write_page(report: "Report", file: Path, command: str) -> None:
    from moebench.report import write

    write(file, report.page(command).encode())
    print_message(f"{file}: open it in a browser")


def _command(file: Path, **options: object) -> str:
    """The command that makes a page again where its runs are all that `runs` holds."""
    words = ["moebench", "report"]
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        for each in value if isinstance(value, list) else [value]:
            if each not in (None, False):
                words += [option] if each is True else [option, str(each)]
    return shlex.join([*words, "--html", file.name])


def _show(report: "Report", full: bool) -> None:
    """Print the report as wide as the terminal; page what a screen cannot hold, as git does."""
    from rich.text import Text

    console = stdout_console()
    width, height = shutil.get_terminal_size((80, 24))
    width = max(width, 80)
    if full:
        lines = [Text(line) for line in report.render("table", width).splitlines()]
    else:
        lines = report.brief(width)
    for line in lines:
        _colour(line)
    paged = sys.stdout.isatty() and len(lines) >= height
    if paged:
        os.environ.setdefault("LESS", "FRX")
    with console.pager(styles=True) if paged else nullcontext():
        for line in lines:
            console.print(line, soft_wrap=True)


def _colour(line: "Text") -> None:
    """Colour the verdicts in a line."""
    for words, style in VERDICTS.items():
        line.highlight_regex(rf"\b({words})\b", style)


def _print(text: bytes, form: str) -> None:
    if form == "parquet" and sys.stdout.isatty():
        raise ConfigError(
            "--format parquet: is binary; redirect it to a file, as in > report.parquet"
        )
    sys.stdout.buffer.write(text)

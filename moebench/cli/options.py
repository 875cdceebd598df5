"""Arguments and options that several commands share, and the parsers of their values."""

import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from moebench.records import Record

RUNS = Path("runs")

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def completion(name: str) -> Callable[[typer.Context, str], list[tuple[str, str]]]:
    """The completion function `name`. Its module is imported only when Tab is pressed."""

    def complete(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
        from moebench.cli import completion

        return getattr(completion, name)(ctx, incomplete)

    return complete


def path(text: str) -> Path:
    """A path; an empty one would silently be the working directory."""
    if not text:
        raise typer.BadParameter("is empty; name a folder, or . for the working directory")
    return Path(text)


def parse_number(text: str) -> int:
    """A whole number from 1 to 65535."""
    if not (text.isdecimal() and 0 < int(text) < 2**16):
        raise typer.BadParameter(f"{text}: must be a whole number from 1 to 65535")
    return int(text)


def parse_duration(text: str) -> float:
    """Seconds, from text such as 90, 90s, 30m, 2h or 1d."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 0 < seconds < 1e9:
        raise typer.BadParameter(f"{text}: must be a time above 0, as in 90s, 30m or 2h")
    return seconds


def parse_hours(text: str) -> float:
    """A number of hours, such as 8 or 0.5."""
    match = re.fullmatch(r"\d+(?:\.\d+)?", text)
    hours = float(text) if match else 0.0
    if not 0 < hours < 1e5:
        raise typer.BadParameter(f"{text}: must be a number of hours above 0, as in 8 or 0.5")
    return hours


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="settings as key=value or group=preset, for example scope=global balance_bsz=128",
        autocompletion=completion("overrides"),
    ),
]
RunsDir = Annotated[Path, typer.Option("--runs-dir", help="directory that holds the runs")]
ConfigDir = Annotated[
    Path | None, typer.Option("--config-dir", help="directory with additional presets of your own")
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON to stdout")]
Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="MODULE",
        help="module or .py file that adds methods or scopes; may be repeated",
    ),
]
TrainedRun = Annotated[
    Path,
    typer.Argument(parser=path, help="a run with a checkpoint", autocompletion=completion("runs")),
]
CheckpointStep = Annotated[
    int | None, typer.Option("--step", help="step of the checkpoint; by default the last")
]
TextDomain = Annotated[
    str | None,
    typer.Option(
        "--domain",
        help="domain of a text that has none of its own, for runs that read the domain "
        "(data.domain_token=true, router=domain or router=domain_token)",
    ),
]
Track = Annotated[
    str | None,
    typer.Option(
        "--track",
        metavar="NAME",
        help="send rows, config and pictures to a tracker while runs go: wandb, mlflow or trackio",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="print the plan and stop; prepares data, writes no run; where a launcher has GPUs, "
        "asks a worker what it has",
    ),
]
PrintConfig = Annotated[
    bool,
    typer.Option("--print-config", help="print the resolved config of each run as YAML and stop"),
]


def load_plugins(plugins: Iterable[str] | None) -> None:
    """Import what `--plugin` names, so that its scopes and methods can be chosen.

    Raises ConfigError for a module that cannot be imported.
    """
    from moebench.registry import load_plugin

    for plugin in plugins or []:
        load_plugin(plugin)


def check_tracker(name: str | None) -> None:
    """Raise ConfigError, before data is prepared, for a tracker whose library is missing."""
    if name is not None:
        from moebench.tracking.trackers import load_library

        load_library(name)


@contextmanager
def tracked(name: str | None, records: "Iterable[Record]") -> Iterator[None]:
    """Mirror records in the tracker that `--track` names while the block runs.

    Raises ConfigError for a tracker that cannot be had.
    """
    if name is None:
        yield
        return
    from moebench.cli.output import print_message
    from moebench.tracking import following
    from moebench.tracking.trackers import open_tracker

    with following(open_tracker(name), records, print_message):
        yield


def command_line() -> str:
    """The command as the user typed it, quoted for a shell."""
    return shlex.join(["moebench", *sys.argv[1:]])

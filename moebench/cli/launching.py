"""Options of `moebench sweep` that say where runs are trained, and how a sweep is run there."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moebench.cli.options import completion
from moebench.cli.output import print_message
from moebench.errors import ConfigError

if TYPE_CHECKING:
    from moebench.study import Launcher
    from moebench.study.engines import Engine
    from moebench.study.engines.choice import Choice


class Places(tuple[int, ...]):
    """Places of GPUs among those that torch sees."""


def parse_gpus(text: str) -> Places:
    """Places of GPUs, from text such as 0 or 0,2."""
    places = text.split(",")
    if not all(place.isdecimal() and len(place) < 5 for place in places):
        raise typer.BadParameter(f"{text}: must be places of GPUs from 0 on, as in 0,2")
    return Places(map(int, places))


LauncherName = Annotated[
    str,
    typer.Option(
        "--launcher",
        metavar="NAME",
        help="where runs are trained: local, submitit (SLURM), ray, commands, or a preset of yours",
        autocompletion=completion("launchers"),
    ),
]
EngineOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--engine",
        metavar="KEY=VALUE",
        help="an option of the launcher's engine, as in slurm_partition=gpu; may be repeated",
    ),
]
Gpus = Annotated[
    Places | None,
    typer.Option(
        "--gpus",
        parser=parse_gpus,
        metavar="N[,N...]",
        help="GPUs of this machine that runs use, as in 0,2; by default all",
    ),
]
Detach = Annotated[
    bool,
    typer.Option(
        "--detach", help="hand the runs in and stop; the same words come back to them later"
    ),
]


def open_engine(choice: "Choice", config_dir: Path | None, runs_dir: Path) -> "Engine":
    """The engine of a sweep. Raises ConfigError for one that cannot be had."""
    from moebench.config.presets import Presets

    return choice.engine(Presets(config_dir), runs_dir)


def precision(engine: "Engine") -> Callable[[str], str]:
    """What `train.precision=auto` means for a `run.device`, by what the engine's workers have."""
    from moebench import device

    def suited(wanted: str) -> str:
        worker = engine.worker()
        if worker is None:  # the sweep trains on this machine
            return device.suited_precision(wanted)
        return "fp32" if wanted == "cpu" else worker.precision

    return suited


def check_detach(launcher: "Launcher", name: str) -> None:
    if not launcher.engine.stays:
        raise ConfigError(
            f"--detach: the runs of --launcher {name} end with the sweep; leave it out, or use "
            "--launcher submitit"
        )


def run(
    launcher: "Launcher", *, detach: bool = False, each: Callable[[], None] | None = None
) -> None:
    """Run the jobs to their end, or with `detach` hand them in and leave them.

    Args:
        each: called after each look at the engine while jobs wait.
    """
    from moebench.study.engines.commands import Commands

    engine = launcher.engine
    path = launcher.plan.write(launcher.runs_dir)
    if isinstance(engine, Commands):
        (path.parent / "logs").mkdir(exist_ok=True)
        for batch in launcher.batches():
            print(engine.command(batch))
    elif detach:
        handed_in = launcher.leave()
        print_message(f"{sum(len(placed.jobs) for placed in handed_in)} runs are with the engine")
    else:
        follow(launcher, each)


def follow(launcher: "Launcher", each: Callable[[], None] | None = None) -> None:
    """Run the jobs to their end and show their progress; the plan is written already.

    Args:
        each: called after each look at the engine while jobs wait.
    """
    from moebench.cli.progress import SweepDisplay

    # Closing the generator stops the processes, also after an error or Ctrl-C.
    with SweepDisplay(launcher) as display, closing(launcher.run()) as polls:
        for _ in polls:
            display.refresh()
            if each is not None and launcher.waiting:
                each()
        display.refresh(now=True)

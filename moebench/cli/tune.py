"""`moebench tune`: keys chosen by search, on tuning seeds."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moebench.cli.options import (
    RUNS,
    AsJson,
    ConfigDir,
    Plugins,
    RunsDir,
    command_line,
    completion,
    load_plugins,
)
from moebench.cli.output import print_json, print_message
from moebench.machine import importing

if TYPE_CHECKING:
    from moebench.tuning import OnEvent, Outcome

Words = Annotated[
    list[str],
    typer.Argument(
        help="ranges as key=low..high, and settings as key=value that all trials have",
        autocompletion=completion("overrides"),
    ),
]
Trials = Annotated[
    int,
    typer.Option("--trials", min=1, max=10_000, metavar="N", help="trials in all"),
]
Seeds = Annotated[
    int,
    typer.Option(
        "--seeds", min=1, max=1000, metavar="N", help="runs of a trial, with seeds 1000 and up"
    ),
]


def tune(
    words: Words,
    trials: Trials,
    seeds: Seeds = 1,
    as_json: AsJson = False,
    config_dir: ConfigDir = None,
    plugin: Plugins = None,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Search for the best values of keys, on seeds and validation text that no report shows.

    The same command goes on with a search that was stopped, or that is to have more trials.

    Example: `moebench tune optim.lr=1e-4..1e-2 loss.balance=0.001..1 --trials 20`
    """
    with importing():
        from moebench import device
        from moebench.config.compose import Composer
        from moebench.tuning import Search, best
    load_plugins(plugin)
    search = Search(Composer(config_dir, device.suited_precision), words, seeds, runs_dir)
    outcomes: list[Outcome] = []
    for outcome in search.run(trials, _follow, command_line()):
        outcomes.append(outcome)
        print_message(_line(outcome, outcomes, trials))
    chosen = best(outcomes)
    if as_json:
        rows = [outcome._asdict() for outcome in outcomes]
        print_json({"best": chosen._asdict(), "trials": rows, "journal": str(search.journal)})
    else:
        print(chosen.words)


def _line(outcome: "Outcome", outcomes: "list[Outcome]", trials: int) -> str:
    from moebench.tuning import METRIC, best

    about = f"trial {outcome.number} ({len(outcomes)}/{trials})  {outcome.words}"
    if outcome.value is None:
        return f"{about}  failed{outcome.reason and f': {outcome.reason}'}"
    first = best(outcomes)
    return f"{about}  {METRIC} {outcome.value:.4f}  (best {first.value:.4f}: trial {first.number})"


@contextmanager
def _follow(name: str, steps: int) -> "Iterator[OnEvent]":
    """A progress bar of a run."""
    from moebench.cli.progress import TrainDisplay

    with TrainDisplay(name, steps) as display:

        def show(event: Any) -> None:
            row = event.row or {}  # without the half that reports show
            display.update(event.step, {k: v for k, v in row.items() if k[:6] != "valid/"})

        yield show

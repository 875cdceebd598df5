"""`moebench tune`: keys chosen by search, on tuning seeds."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
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
from moebench.errors import ConfigError
from moebench.machine import importing

if TYPE_CHECKING:
    from moebench.config.compose import Composer
    from moebench.searches import Outcome
    from moebench.tuning import OnEvent, Search

Words = Annotated[
    list[str],
    typer.Argument(
        help="ranges as key=low..high, and settings as key=value that all trials have; or study=, "
        "whose arms have ranges",
        autocompletion=completion("overrides"),
    ),
]
Trials = Annotated[
    int | None,
    typer.Option(
        "--trials",
        min=1,
        max=10_000,
        metavar="N",
        help="trials in all; of a study, for each arm with ranges, by default as the study says",
    ),
]
Seeds = Annotated[
    int | None,
    typer.Option(
        "--seeds",
        min=1,
        max=1000,
        metavar="N",
        help="runs of a trial, with seeds 1000 and up; by default 1",
    ),
]


def tune(
    words: Words,
    trials: Trials = None,
    seeds: Seeds = None,
    as_json: AsJson = False,
    config_dir: ConfigDir = None,
    plugin: Plugins = None,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Search for the best values of keys, on seeds and validation text that no report shows.

    The same command goes on with a search that was stopped, or that is to have more trials.

    Examples: `moebench tune optim.lr=1e-4..1e-2 loss.balance=0.001..1 --trials 20`,
    `moebench tune study=tuned_methods`
    """
    with importing():
        from moebench import device
        from moebench.config.compose import Composer
        from moebench.tuning import Search
    load_plugins(plugin)
    composer = Composer(config_dir, device.suited_precision)
    if any(word.startswith("study=") for word in words):
        _tune_study(composer, words, trials, seeds, runs_dir, as_json)
        return
    if trials is None:
        raise ConfigError("--trials: is missing; say how many trials to make, as in --trials 20")
    search = Search(composer, words, seeds or 1, runs_dir)
    outcomes = _run(search, trials)
    if as_json:
        print_json(_as_dict(search, outcomes))
    else:
        print(_first(outcomes).words)


def _tune_study(
    composer: "Composer",
    words: list[str],
    trials: int | None,
    seeds: int | None,
    runs_dir: Path,
    as_json: bool,
) -> None:
    """Search the ranges of each arm of a study, one arm after the other."""
    from moebench.study.axes import searches_of
    from moebench.tuning import Search

    if seeds is not None:
        raise ConfigError(
            f"--seeds {seeds}: a study sets the seeds of its trials; type study.trial_seeds={seeds}"
            ", here and after moebench sweep"
        )
    searches = searches_of(composer, words, runs_dir)
    trials = trials or searches.trials
    if trials is None:
        raise ConfigError(
            "--trials: is missing, and study.trials says none for this size; type --trials 20"
        )
    found = {}
    for number, (arm, search) in enumerate(searches.spaces(Search).items(), 1):
        name = searches.name(arm)
        print_message(f"arm {number}/{len(searches.words)}: {name}  {' '.join(search.ranges)}")
        found[name] = search, _run(search, trials)
    if as_json:
        arms = {name: _as_dict(search, outcomes) for name, (search, outcomes) in found.items()}
        print_json({"arms": arms})
    else:
        for name, (_, outcomes) in found.items():
            print(f"{name}: {_first(outcomes).words}")
        print_message(f"{searches.next_command()} trains the arms with these values")


def _run(search: "Search", trials: int) -> "list[Outcome]":
    """Make the trials of a search, with a line for each."""
    outcomes: list[Outcome] = []
    for outcome in search.run(trials, _follow, command_line()):
        outcomes.append(outcome)
        print_message(_line(outcome, outcomes, trials))
    return outcomes


def _first(outcomes: "Sequence[Outcome]") -> "Outcome":
    """The best outcome of a search that has one."""
    from moebench.searches import best

    first = best(outcomes)
    assert first is not None
    return first


def _as_dict(search: "Search", outcomes: "Sequence[Outcome]") -> dict[str, Any]:
    rows = [outcome._asdict() for outcome in outcomes]
    return {
        "best": _first(outcomes)._asdict(),
        "trials": rows,
        "journal": str(search.journal),
    }


def _line(outcome: "Outcome", outcomes: "Sequence[Outcome]", trials: int) -> str:
    from moebench.searches import METRIC

    about = f"trial {outcome.number} ({len(outcomes)}/{trials})  {outcome.words}"
    if outcome.value is None:
        return f"{about}  failed{outcome.reason and f': {outcome.reason}'}"
    first = _first(outcomes)
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

"""`moebench sweep`: every run of a study or a grid."""

import os
import shlex
from collections import Counter
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from moebench.cli.deciding import (
    Margin,
    MostSeeds,
    Register,
    Rule,
    UntilDecided,
    print_registered,
    print_rule,
    train_until_decided,
)
from moebench.cli.exit_codes import PARTLY_FAILED
from moebench.cli.hours import allow, as_dict, budget, print_totals
from moebench.cli.launching import (
    Detach,
    EngineOptions,
    Gpus,
    LauncherName,
    check_detach,
    open_engine,
    precision,
    run,
)
from moebench.cli.options import (
    RUNS,
    AsJson,
    ConfigDir,
    DryRun,
    Overrides,
    Plugins,
    PrintConfig,
    RunsDir,
    Track,
    check_tracker,
    load_plugins,
    parse_duration,
    parse_hours,
    parse_number,
    tracked,
)
from moebench.cli.output import (
    print_error,
    print_json,
    print_message,
    stderr_console,
    stdout_console,
)
from moebench.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from moebench.study import Axes, Job, Launcher, Plan
    from moebench.study.budget import Totals
    from moebench.study.engines import Engine

Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        parser=parse_number,
        metavar="N",
        help="processes at a time; by default one per core",
    ),
]
Seeds = Annotated[
    int | None,
    typer.Option(
        "--seeds", parser=parse_number, metavar="N", help="train every arm with seeds 0 to N-1"
    ),
]
Name = Annotated[
    str | None,
    typer.Option("--name", help="name of a grid, for report --study NAME; by default sweep"),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="'KEY=VALUE ..'",
        help="leave out the runs that have all of these settings; may be repeated",
    ),
]
Hours = Annotated[
    float | None,
    typer.Option(
        "--hours",
        parser=parse_hours,
        metavar="H",
        help="begin only seeds that end within so many hours by an estimate; the same command "
        "trains the others later",
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        parser=parse_duration,
        metavar="TIME",
        help="end a run that completes no step for this long, as in 90s, 30m or 2h; must be longer "
        "than the start, an evaluation or a compilation takes",
    ),
]
Status = Annotated[
    bool,
    typer.Option(
        "--status",
        help="show the progress of the runs and stop: of the latest sweep, of the study with the "
        "given name, or of a sweep with the same settings",
    ),
]


def sweep(
    overrides: Overrides = None,
    seeds: Seeds = None,
    name: Name = None,
    exclude: Exclude = None,
    register: Register = False,
    until_decided: UntilDecided = False,
    most_seeds: MostSeeds = None,
    margin: Margin = None,
    hours: Hours = None,
    jobs: Jobs = None,
    timeout: Timeout = None,
    launcher: LauncherName = "local",
    engine: EngineOptions = None,
    gpus: Gpus = None,
    detach: Detach = False,
    track: Track = None,
    status: Status = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    print_config: PrintConfig = False,
    config_dir: ConfigDir = None,
    plugin: Plugins = None,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Train every run of a study or a grid, except those that are already done.

    Examples: `moebench sweep study=demo`, `moebench sweep scope=micro,shuffled,global seed=0,1,2`,
    `moebench sweep study=demo --status`
    """
    rule, words = Rule(register, until_decided, most_seeds, margin), overrides or []
    shows = "--status" if status else "--print-config" if print_config else ""
    rule.check(launcher, detach=detach, shows=shows)
    _check(launcher, hours, status=status, dry_run=dry_run, as_json=as_json)
    _check_track(track, stays=not detach and launcher != "commands")
    load_plugins(plugin)
    from moebench.study import Axes, child
    from moebench.study.engines.choice import Choice

    if launcher == "local" and not (status or print_config or dry_run or register):
        child.warm()
    chosen = Choice(launcher, engine or (), jobs, gpus, timeout)
    with closing(open_engine(chosen, config_dir, runs_dir)) as place:
        axes = Axes(rule.seeds(words, seeds), name, tuple(exclude or ()))
        plan = _plan(words, axes, config_dir, runs_dir, place, known=status)
        if status:
            _print_status(plan, runs_dir, as_json)
        elif print_config:
            _print_configs(plan, as_json)
        else:
            plan, margin_from = rule.applied(plan, runs_dir)
            if register and not dry_run:
                print_registered(plan, runs_dir, margin_from, as_json=as_json)
            else:
                how = How(hours, launcher if detach else None, track, dry_run, as_json)
                _run(plan, runs_dir, place, how)


class How(NamedTuple):
    """How a sweep is run.

    Attributes:
        detached: the name of the launcher whose runs are left to it; None: they are followed.
    """

    hours: float | None
    detached: str | None
    track: str | None
    dry_run: bool
    as_json: bool


def _run(plan: "Plan", runs_dir: Path, engine: "Engine", how: How) -> None:
    """Run a plan, or print what that would take."""
    from moebench.study import Launcher

    sweep = Launcher(plan, runs_dir, engine)
    if how.detached:
        check_detach(sweep, how.detached)
    console = stdout_console() if how.dry_run and not how.as_json else stderr_console()
    _print_plan(sweep, console)
    _print_others(sweep, console)
    print_rule(plan, console)
    hours = None if plan.most_seeds else how.hours  # a look is trained as a whole
    estimate = budget(sweep) if how.dry_run or hours else None
    each = allow(sweep, hours, estimate, console) if hours and estimate else None
    totals = estimate.totals(sweep.waiting) if how.dry_run and estimate else None
    if totals is not None:
        print_totals(totals, sweep, console)
    else:
        with tracked(how.track, [sweep.record(job) for job in plan.jobs]):
            if plan.most_seeds:
                sweep = train_until_decided(plan, runs_dir, engine, how.hours)
            else:
                run(sweep, detach=bool(how.detached), each=each)
    _print_end(plan, runs_dir, totals, how.as_json)
    _report_failures(sweep)


def _check(
    launcher: str, hours: float | None, *, status: bool, dry_run: bool, as_json: bool
) -> None:
    """ConfigError for options that exclude each other."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError("WORLD_SIZE: a sweep starts its own processes; start it without torchrun")
    if status and dry_run:
        raise ConfigError("--status --dry-run: one shows runs, one plans them; use only one")
    if as_json and launcher == "commands":
        raise ConfigError("--json --launcher commands: both write to stdout; use only one")
    if hours and launcher != "local":
        raise ConfigError(
            f"--hours: is for --launcher local, whose speed is measured here; with {launcher}, "
            "choose the runs by --seeds"
        )


def _check_track(tracker: str | None, *, stays: bool) -> None:
    if tracker and not stays:
        raise ConfigError(
            f"--track {tracker}: this sweep does not stay to follow its runs; moebench track sends "
            "them later"
        )
    check_tracker(tracker)


def _plan(
    words: list[str],
    axes: "Axes",
    config_dir: Path | None,
    runs_dir: Path,
    engine: "Engine",
    known: bool,
) -> "Plan":
    """The plan that the words describe, or with `known` also that of an earlier sweep, by name."""
    from moebench.config.compose import Composer
    from moebench.study import find_plan, make_plan

    if known and not any(axes) and len(words) < 2 and "=" not in "".join(words):
        return find_plan(runs_dir, *words)
    composer = Composer(config_dir, precision(engine))
    return make_plan(composer, words, axes, runs_dir=runs_dir, progress=print_message)


def _print_end(plan: "Plan", runs_dir: Path, totals: "Totals | None", as_json: bool) -> None:
    """Print the result, or what to do next; with the totals of a sweep that was only planned."""
    if as_json:
        _print_json(plan, runs_dir, **({"budget": as_dict(totals)} if totals else {}))
    elif totals is None:
        _print_next(plan, runs_dir)


def _print_next(plan: "Plan", runs_dir: Path) -> None:
    """Print the command that comes after a sweep."""
    elsewhere = [] if runs_dir == RUNS else ["--runs-dir", str(runs_dir)]
    command = shlex.join(["moebench", "report", "--study", plan.slug, *elsewhere])
    print_message(f"{command} compares the runs")


def _report_failures(launcher: "Launcher") -> None:
    """Print an error line per failed run and exit, if there are any."""
    from moebench.study.status import in_sweep

    for job, reason in launcher.failed:
        print_error(f"{job.run}: {in_sweep(job.run, reason)}")
    if launcher.failed:
        raise typer.Exit(PARTLY_FAILED)


def _print_status(plan: "Plan", runs_dir: Path, as_json: bool) -> None:
    from moebench.study.status import render, run_statuses

    if as_json:
        _print_json(plan, runs_dir)
    else:
        render(plan, run_statuses(plan, runs_dir), stdout_console())


def _print_json(plan: "Plan", runs_dir: Path, **more: Any) -> None:
    from moebench.study.status import run_statuses, seconds_left

    runs = run_statuses(plan, runs_dir)
    rows = [{**asdict(run), "run": str(runs_dir / run.run)} for run in runs]
    print_json({"study": plan.slug, "seconds_left": seconds_left(runs), "runs": rows, **more})


def _print_configs(plan: "Plan", as_json: bool) -> None:
    from moebench.config.compose import from_dict, to_yaml

    if as_json:
        print_json({"runs": [{"run": job.run, "config": job.config} for job in plan.jobs]})
        return
    for job in plan.jobs:  # one YAML document per run
        print(f"--- # {job.run}", to_yaml(from_dict(job.config)), sep="\n", end="")


def _print_plan(launcher: "Launcher", console: "Console") -> None:
    """Print the overrides that all runs share, then a table with one row per arm."""
    plan = launcher.plan
    shared = [
        word for word in plan.jobs[0].overrides if all(word in job.overrides for job in plan.jobs)
    ]
    size = f", size {plan.size}" if plan.size else ""
    title = f"{plan.slug}{size}: {len(plan.jobs)} runs{_on_gpu(launcher)}. {plan.question}"
    print_message(title.strip(), console)
    if shared:
        print_message(f"all runs: {' '.join(shared)}", console)
    console.print(_arms_table(launcher, shared))


def _print_others(launcher: "Launcher", console: "Console") -> None:
    """Name the finished runs that a sweep could take if it were typed otherwise."""
    from moebench.evaluations import KEY, others

    found = others(launcher.waiting, launcher.runs_dir)
    for every, number in Counter(other.every for other in found if other.serves).items():
        print_message(
            f"{number} of the runs to train are done with {KEY}={every}, which has all evaluations "
            f"of these: type {KEY}={every} to take them; only router/changed and router/saturation "
            "are not those of this sweep",
            console,
        )


def _on_gpu(launcher: "Launcher") -> str:
    """The precision of runs and how many one process stacks; nothing for fp32 one by one."""
    from moebench.config.compose import from_dict

    words, jobs = [], launcher.plan.jobs
    precisions = sorted({job.config["train"]["precision"] for job in jobs})
    if precisions != ["fp32"]:
        words.append(f" in {' and '.join(precisions)}")
    stacked = launcher.engine.stack_size(from_dict(jobs[0].config))
    if stacked > 1 and len(jobs) > 1:
        words.append(f", up to {min(stacked, len(jobs))} of them stacked in one process")
    return "".join(words)


def _arms_table(launcher: "Launcher", shared: list[str]) -> Any:
    from rich.table import Table
    from rich.text import Text

    arms: dict[str, list[Job]] = {}
    for job in launcher.plan.jobs:
        arms.setdefault(job.arm_hash, []).append(job)
    baseline = launcher.plan.baseline_hash()
    table = Table()
    for column in ("arm", "overrides", "seeds", "steps", "done"):
        table.add_column(column, overflow="fold")
    for arm_hash, jobs in arms.items():
        named = jobs[0].arm.split()
        overrides = [
            word
            for word in jobs[0].overrides
            if word not in (*shared, *named) and not word.startswith("seed=")
        ]
        cells = (
            jobs[0].arm + (" (baseline)" if arm_hash == baseline else ""),
            " ".join(overrides),
            " ".join(str(job.seed) for job in jobs),
            str(jobs[0].steps),
            f"{sum(launcher.record(job).is_done() for job in jobs)}/{len(jobs)}",
        )
        table.add_row(*map(Text, cells))
    return table

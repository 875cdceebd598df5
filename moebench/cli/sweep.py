"""`moebench sweep`: every run of a study or a grid."""

import os
import shlex
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moebench.cli.exit_codes import PARTLY_FAILED
from moebench.cli.options import (
    RUNS,
    AsJson,
    ConfigDir,
    DryRun,
    Overrides,
    Plugins,
    PrintConfig,
    RunsDir,
    load_plugins,
    parse_duration,
    parse_hours,
    parse_number,
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

    from moebench.study import Axes, Job, LocalLauncher, Plan
    from moebench.study.allowance import Allowance
    from moebench.study.budget import Budget, Totals

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
    hours: Hours = None,
    jobs: Jobs = None,
    timeout: Timeout = None,
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
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError("WORLD_SIZE: a sweep starts its own processes; start it without torchrun")
    if status and dry_run:
        raise ConfigError("--status --dry-run: one shows runs, one plans them; use only one")
    load_plugins(plugin)
    from moebench.study import Axes

    axes = Axes(seeds, name, tuple(exclude or ()))
    plan = _plan(overrides or [], axes, config_dir, runs_dir, known=status)
    if status:
        _print_status(plan, runs_dir, as_json)
        return
    if print_config:
        _print_configs(plan, as_json)
        return
    launcher = _launcher(plan, runs_dir, jobs, timeout)
    console = stdout_console() if dry_run and not as_json else stderr_console()
    _print_plan(launcher, console)
    budget = _budget(launcher) if dry_run or hours else None
    allowance = _allow(launcher, hours, budget, console) if hours and budget else None
    totals = budget.totals(launcher.waiting) if budget and dry_run else None
    if totals is not None:
        _print_totals(totals, launcher, console)
    if not dry_run:
        _run(launcher, allowance)
    if as_json:
        _print_json(plan, runs_dir, **({"budget": _as_dict(totals)} if totals else {}))
    elif not dry_run:
        elsewhere = [] if runs_dir == RUNS else ["--runs-dir", str(runs_dir)]
        command = shlex.join(["moebench", "report", "--study", plan.slug, *elsewhere])
        print_message(f"{command} compares the runs")
    _report_failures(launcher)


def _plan(
    words: list[str], axes: "Axes", config_dir: Path | None, runs_dir: Path, known: bool
) -> "Plan":
    """The plan that the words describe, or with `known` also that of an earlier sweep, by name."""
    from moebench import device
    from moebench.config.compose import Composer
    from moebench.study import find_plan, make_plan

    if known and not any(axes) and len(words) < 2 and "=" not in "".join(words):
        return find_plan(runs_dir, *words)
    composer = Composer(config_dir, device.suited_precision)  # the sweep trains on this machine
    plan, _ = make_plan(composer, words, axes, progress=print_message)
    return plan


def _launcher(
    plan: "Plan", runs_dir: Path, jobs: int | None, timeout: float | None
) -> "LocalLauncher":
    from moebench.config.compose import from_dict
    from moebench.machine import usable_cores
    from moebench.study import LocalLauncher
    from moebench.study.stacking import on_gpu, stack_size

    # One process with a stack of runs fills a GPU; several would only compete for it.
    stacked = any(on_gpu(from_dict(job.config)) for job in plan.jobs)
    workers = jobs or (1 if stacked else usable_cores())
    return LocalLauncher(plan, runs_dir, workers, timeout, partial(stack_size, processes=workers))


def _budget(launcher: "LocalLauncher") -> "Budget":
    """What the jobs that are not done will take here; this times them for a few seconds."""
    from moebench.study.budget import Budget

    return Budget(launcher.waiting, launcher.workers, launcher.stack_size)


def _allow(
    launcher: "LocalLauncher", hours: float, budget: "Budget", console: "Console"
) -> "Allowance":
    """Keep the seeds that fit into some hours, and print how many these are."""
    from moebench.study.allowance import Allowance

    allowance = Allowance(hours, budget, launcher.waiting)
    seeds = len({job.seed for job in allowance.jobs}), len({job.seed for job in launcher.waiting})
    launcher.waiting = list(allowance.jobs)
    print_message(f"--hours {hours:g}: {seeds[0]} of {seeds[1]} seeds fit by the estimate", console)
    return allowance


def _print_totals(totals: "Totals", launcher: "LocalLauncher", console: "Console") -> None:
    from moebench.study.budget import lines

    for line in lines(totals, launcher.workers):
        print_message(line, console)


def _as_dict(totals: "Totals") -> dict[str, Any]:
    return {**totals._asdict(), "seconds": totals.seconds._asdict()}


def _trim(launcher: "LocalLauncher", allowance: "Allowance", done: dict[int, float]) -> None:
    """Leave out waiting jobs whose seed would no longer end in time.

    Args:
        done: seconds of the jobs that have ended, by id; it is completed.
    """
    from moebench.study.status import last_status

    active = [job for attempt in launcher.running for job in attempt.jobs]
    active += [waiting.job for waiting in launcher.elsewhere]
    known = {job.id for job in (*active, *launcher.waiting)} | done.keys()
    for job in allowance.jobs:
        if job.id not in known and launcher.record(job).is_done():
            done[job.id] = float(last_status(launcher.record(job)).get("seconds", 0.0))
    kept = allowance.still_fitting(active, launcher.waiting, done)
    if left_out := {job.seed for job in launcher.waiting} - {job.seed for job in kept}:
        print_message(f"--hours {allowance.hours:g}: leaves out {len(left_out)} more seeds")
        launcher.waiting = kept


def _run(launcher: "LocalLauncher", allowance: "Allowance | None" = None) -> None:
    from moebench.cli.progress import SweepDisplay

    launcher.plan.write(launcher.runs_dir)
    done: dict[int, float] = {}
    # Closing the generator stops the processes, also after an error or Ctrl-C.
    with SweepDisplay(launcher) as display, closing(launcher.run()) as polls:
        for _ in polls:
            display.refresh()
            if allowance is not None and launcher.waiting:
                _trim(launcher, allowance, done)


def _report_failures(launcher: "LocalLauncher") -> None:
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


def _print_plan(launcher: "LocalLauncher", console: "Console") -> None:
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


def _on_gpu(launcher: "LocalLauncher") -> str:
    """The precision of runs and how many one process stacks; nothing for fp32 one by one."""
    from moebench.config.compose import from_dict

    words, jobs = [], launcher.plan.jobs
    precisions = sorted({job.config["train"]["precision"] for job in jobs})
    if precisions != ["fp32"]:
        words.append(f" in {' and '.join(precisions)}")
    stacked = launcher.stack_size(from_dict(jobs[0].config)) if launcher.stack_size else 1
    if stacked > 1 and len(jobs) > 1:
        words.append(f", up to {min(stacked, len(jobs))} of them stacked in one process")
    return "".join(words)


def _arms_table(launcher: "LocalLauncher", shared: list[str]) -> Any:
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
            str(jobs[0].config["train"]["steps"]),
            f"{sum(launcher.record(job).is_done() for job in jobs)}/{len(jobs)}",
        )
        table.add_row(*map(Text, cells))
    return table

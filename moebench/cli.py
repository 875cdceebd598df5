"""The command line: parse, call one function, print.

stdout carries what was asked for, stderr progress and errors. Nothing heavy is imported before a
command needs it, so that `--help` is quick.
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from moebench import __version__
from moebench.errors import ConfigError, MoebenchError, RecordError

app = typer.Typer(
    name="moebench",
    help="Over which tokens should a Mixture-of-Experts router be balanced, and what does it cost "
    "and buy? Trains small MoE language models that differ in nothing else, and compares them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
data_app = typer.Typer(help="Prepare and look at the text that runs train on.")
app.add_typer(data_app, name="data", no_args_is_help=True)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="key=value and group=preset, as in scope=global balance_bsz=128"),
]
RunsDir = Annotated[Path, typer.Option("--runs-dir", help="where records lie")]
ConfigDir = Annotated[
    Path | None, typer.Option("--config-dir", help="a folder of your own presets, beside conf/")
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON to stdout")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="say what would be done; write nothing")]

RUNS = Path("runs")


@app.command()
def train(
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with an unfinished run")] = False,
    force: Annotated[bool, typer.Option("--force", help="start afresh")] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="print the resolved config as YAML and stop")
    ] = False,
    config_dir: ConfigDir = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="start from a record's config.yaml")
    ] = None,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Train one run: one arm with one seed.

    Example: `moebench train scope=global balance_bsz=128`
    """
    from moebench.config.compose import Composer, to_yaml
    from moebench.progress import TrainDisplay, console

    made = Composer(config_dir).compose(overrides or [], base=config)
    if print_config:
        print(to_yaml(made), end="")
        return
    from moebench.config.identity import run_name
    from moebench.data.corpus import prepare

    corpus = prepare(made.data, progress=console().print)
    name = run_name(made, corpus.content_hash)
    if dry_run:
        print(f"{runs_dir / name}: {made.train.steps} steps of {made.global_bsz} sequences")
        return
    from moebench.experiment import run_experiment
    from moebench.records import Record

    record = Record(runs_dir / name)
    if record.is_done() and not force:
        console().print(f"{record.path}: is done already", markup=False, soft_wrap=True)
    else:
        router = made.loss.balance / made.model.num_layers
        console().print(
            f"{record.path}  balance loss weight {made.loss.balance:g}, {router:g} per router",
            markup=False,
            soft_wrap=True,
        )
        with TrainDisplay(name, made.train.steps) as display:
            record = run_experiment(
                made,
                corpus,
                runs_dir,
                resume=resume,
                force=force,
                on_event=lambda event: display.update(event.step, event.row),
            )
    summary = record.summary()
    if as_json:
        _print_json({"schema_version": 1, "run": str(record.path), "summary": summary})
    else:
        _print_summary(record.path, summary)


@app.command()
def sweep(
    overrides: Overrides = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", help="processes at a time; as many as cores by default")
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    config_dir: ConfigDir = None,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Train every run of a study or of a grid; what is done already is left as it is.

    Examples: `moebench sweep study=demo`, `moebench sweep scope=micro,shuffled,global seed=0,1,2`
    """
    from moebench.config.compose import Composer
    from moebench.progress import SweepDisplay, console
    from moebench.study import LocalLauncher, make_plan

    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs {jobs}: must be at least 1")
    to = console()
    plan, _ = make_plan(Composer(config_dir), overrides or [], progress=to.print)
    launcher = LocalLauncher(plan, runs_dir, jobs or len(os.sched_getaffinity(0)))
    to.print(_plan_table(plan, launcher))
    if dry_run:
        if as_json:
            _print_json(_plan_json(plan, launcher))
        return
    path = plan.write(runs_dir)
    with SweepDisplay(launcher) as display:
        for _ in launcher.run():
            display.refresh()
    if as_json:
        _print_json(_plan_json(plan, launcher))
    else:
        to.print(
            f"{path.parent}: moebench report --study {plan.name} compares the runs",
            markup=False,
            soft_wrap=True,
        )
    if launcher.failed:
        for job in launcher.failed:
            reason = launcher.record(job).status().get("reason", "")
            _say_error(f"{job.run}: {reason}")
        raise typer.Exit(3)


@app.command()
def report(
    directories: Annotated[
        list[Path] | None, typer.Argument(help="runs, or folders of runs; all of --runs-dir")
    ] = None,
    study: Annotated[str | None, typer.Option("--study", help="only the runs of a study")] = None,
    baseline: Annotated[
        str | None, typer.Option("--baseline", help="the arm to compare with")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="table, md, csv or json")] = "table",
    as_json: AsJson = False,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Compare arms: load, specialisation, perplexity and paired differences with intervals.

    Example: `moebench report --study demo`
    """
    from moebench.report import make_report

    made = make_report(directories or [runs_dir], study=study, baseline=baseline, runs_dir=runs_dir)
    print(made.render("json" if as_json else form))


@app.command()
def dashboard(
    runs_dir: RunsDir = RUNS,
    port: Annotated[
        int | None, typer.Option("--port", help="of the page; a free one by default")
    ] = None,
) -> None:
    """Show the runs in TensorBoard, on this machine alone, until Ctrl-C.

    Example: `moebench dashboard`
    """
    from moebench.records import find_records
    from moebench.tensorboard import serve

    if not find_records(runs_dir):
        raise RecordError(f"{runs_dir}: holds no runs; moebench train makes one")
    serve(runs_dir, port, lambda url: print(url, flush=True))


@data_app.command("show")
def data_show(overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Show the domains of the data: documents, sizes and a sample of each.

    Example: `moebench data show data=folder data.path=texts`
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from moebench.config.compose import Composer
    from moebench.data.corpus import prepare
    from moebench.progress import console

    made = Composer().compose(overrides or [])
    corpus = prepare(made.data, progress=console().print)
    rows = corpus.describe()
    if as_json:
        _print_json({"schema_version": 1, "content_hash": corpus.content_hash, "domains": rows})
        return
    table = Table(title=f"data {corpus.content_hash[:10]}", title_justify="left")
    for column in rows[0]:
        number = not isinstance(rows[0][column], str)
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(_cell(value)) for value in row.values()))
    Console().print(table)


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False,
) -> None:
    if show:
        print(f"moebench {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; every error is one line on stderr."""
    try:
        app(standalone_mode=False)
    except MoebenchError as error:
        _say_error(str(error))
        sys.exit(error.exit_code)
    except typer.TyperException as error:
        if error.format_message():
            _say_error(error.format_message())
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _say_error("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        # whoever read our output has had enough, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get("MOEBENCH_DEBUG"):
            raise
        _say_error(
            f"unexpected {type(error).__name__}: {error}; this is a bug in moebench "
            "(MOEBENCH_DEBUG=1 shows where)"
        )
        sys.exit(1)


def _say_error(text: str) -> None:
    print(f"error: {' '.join(text.split())}", file=sys.stderr)


def _print_json(content: dict[str, Any]) -> None:
    print(json.dumps(content, indent=2))


def _cell(value: Any) -> str:
    return f"{value:,.2f}" if isinstance(value, float) else str(value)


def _print_summary(path: Path, summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=str(path), title_justify="left", show_header=False, box=None)
    for key in (
        "valid/nats",
        "valid/ppl",
        "valid/bits_per_byte",
        "load/max_vio_micro",
        "load/max_vio_batch",
        "load/max_vio_global",
        "specialization/domain",
        "speed/tokens_per_second",
        "seconds",
    ):
        if key in summary:
            table.add_row(key, f"{summary[key]:,.4g}")
    Console().print(table)


def _plan_table(plan: Any, launcher: Any) -> Any:
    from rich.markup import escape
    from rich.table import Table

    from moebench.study import state_of

    size = f", size {plan.size}" if plan.size else ""
    table = Table(
        title=escape(f"{plan.slug}{size}: {plan.question}".rstrip(": ")), title_justify="left"
    )
    for column in ("arm", "overrides", "seeds", "steps", "done"):
        table.add_column(column, overflow="fold")
    arms: dict[str, list[Any]] = {}
    for job in plan.jobs:
        arms.setdefault(job.arm_hash, []).append(job)
    for same in arms.values():
        done = sum(state_of(launcher.record(job))["state"] == "done" for job in same)
        own = [each for each in same[0].overrides if not each.startswith("seed=")]
        table.add_row(
            escape(same[0].arm) + (" (baseline)" if same[0].arm == plan.baseline else ""),
            escape(" ".join(own)),
            " ".join(str(job.seed) for job in same),
            str(same[0].config["train"]["steps"]),
            f"{done}/{len(same)}",
        )
    return table


def _plan_json(plan: Any, launcher: Any) -> dict[str, Any]:
    from moebench.study import state_of

    return {
        "schema_version": 1,
        "study": plan.slug,
        "runs": [
            {
                "run": str(launcher.record(job).path),
                "arm": job.arm,
                "seed": job.seed,
                "state": state_of(launcher.record(job))["state"],
            }
            for job in plan.jobs
        ],
    }


if __name__ == "__main__":
    main()

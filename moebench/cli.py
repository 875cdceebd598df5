"""The command line: parse, call one function, print.

stdout carries what was asked for, stderr progress and errors. Nothing heavy is imported before a
command needs it, so that `--help` is quick.
"""

import json
import os
import shlex
import signal
import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from moebench import __version__
from moebench.errors import ConfigError, MoebenchError, RecordError

app = typer.Typer(
    name="moebench",
    help="Over which tokens should a Mixture-of-Experts router be balanced, and what does it cost "
    "and buy? Trains small MoE language models that differ in nothing else, and compares them.",
    epilog="Exit codes: 0 done, 1 failed, 2 a wrong word, key, value or file, 3 a sweep of which "
    "some runs failed, 75 stopped by SIGTERM, 130 by Ctrl-C.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
data_app = typer.Typer(help="Prepare, show or check the text that runs train on.")
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
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="say what would be done; prepare the data, write no run")
]

RUNS = Path("runs")


def _number(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) < 2**16):
        raise typer.BadParameter(f"{text}: must be a whole number from 1 to 65535")
    return int(text)


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
    from moebench.config.compose import Composer, to_dict, to_yaml
    from moebench.progress import TrainDisplay, say

    if resume and force:
        raise ConfigError("--resume --force: one goes on with a run, one starts afresh; keep one")
    made = Composer(config_dir).compose(overrides or [], base=config)
    if print_config:
        _print_json(to_dict(made)) if as_json else print(to_yaml(made), end="")
        return
    from moebench.config.identity import run_name
    from moebench.data.corpus import prepare
    from moebench.records import Record

    corpus = prepare(made.data, progress=say)
    record = Record(runs_dir / run_name(made, corpus.content_hash))
    if dry_run:
        steps, done = made.train.steps, record.is_done()
        if as_json:
            said = {"run": str(record.path), "steps": steps, "done": done}
            _print_json({"schema_version": 1, **said})
        else:
            already = " (is done already)" if done else ""
            print(f"{record.path}: {steps} steps of {made.global_bsz} sequences{already}")
        return
    if record.is_done() and not force:
        say(f"{record.path}: is done already")
    else:
        from moebench.experiment import run_experiment  # torch, only here

        router = made.loss.balance / made.model.num_layers
        say(f"{record.path}  balance loss weight {made.loss.balance:g}, {router:g} per router")
        with TrainDisplay(record.name, made.train.steps) as display:
            run_experiment(
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
        int | None,
        typer.Option(
            "--jobs",
            parser=_number,
            metavar="N",
            help="processes at a time; as many as cores by default",
        ),
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    config_dir: ConfigDir = None,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Train every run of a study or of a grid; what is done already is left as it is.

    Examples: `moebench sweep study=demo`, `moebench sweep scope=micro,shuffled,global seed=0,1,2`
    """
    from rich.console import Console

    from moebench.config.compose import Composer
    from moebench.progress import SweepDisplay, console, say
    from moebench.study import LocalLauncher, make_plan

    plan, _ = make_plan(Composer(config_dir), overrides or [], progress=say)
    launcher = LocalLauncher(plan, runs_dir, jobs or len(os.sched_getaffinity(0)))
    _print_plan(plan, launcher, Console() if dry_run and not as_json else console())
    if not dry_run:
        plan.write(runs_dir)
        # closed at once whatever happens here, so that no process outlives an error or Ctrl-C
        with SweepDisplay(launcher) as display, closing(launcher.run()) as looks:
            for _ in looks:
                display.refresh()
    if as_json:
        _print_json(_plan_json(plan, launcher))
    elif not dry_run:
        where = [] if runs_dir == RUNS else ["--runs-dir", str(runs_dir)]
        say(shlex.join(["moebench", "report", "--study", plan.slug, *where]) + " compares the runs")
    for job, reason in launcher.failed:
        _say_error(f"{job.run}: {reason}")
    if launcher.failed:
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
        int | None,
        typer.Option(
            "--port", parser=_number, metavar="N", help="of the page; a free one by default"
        ),
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


@app.command()
def verify(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="runs, or folders of runs; all of --runs-dir")
    ] = None,
    as_json: AsJson = False,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Check finished runs against their seals: which files were changed, added or lost since?

    Examples: `moebench verify`, `moebench verify runs/global-s0-0123456789`
    """
    from moebench.records import find_sealed, printable

    roots = runs or [runs_dir]
    found = {record.path: record.damage() for root in roots for record in find_sealed(root)}
    if not found:
        names = ", ".join(map(str, roots))
        raise RecordError(f"{names}: holds no finished run, and only those are sealed")
    if as_json:
        _print_json({"schema_version": 1, "damage": {str(run): found[run] for run in found}})
    else:
        for run, damage in found.items():
            for each in damage or ["whole and untouched"]:
                print(printable(f"{run}: {each}"))
    if any(found.values()):
        raise typer.Exit(1)


@app.command()
def doctor(as_json: AsJson = False, runs_dir: RunsDir = RUNS) -> None:
    """Find out what this machine can do for moebench, and what to mend; exits 1 for a problem.

    Example: `moebench doctor`
    """
    from rich.console import Console

    from moebench.doctor import examine, exit_code, render

    findings = examine(runs_dir)
    if as_json:
        _print_json({"schema_version": 1, "findings": [each._asdict() for each in findings]})
    else:
        render(findings, Console())
    if exit_code(findings):
        raise typer.Exit(1)


@data_app.command("prepare")
def data_prepare(
    overrides: Overrides = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs", parser=_number, metavar="N", help="processes; as many as cores by default"
        ),
    ] = None,
    as_json: AsJson = False,
    config_dir: ConfigDir = None,
) -> None:
    """Prepare the data, and say under which hash and where it lies.

    Example: `moebench data prepare data=folder data.path=texts`
    """
    corpus = _corpus(overrides, config_dir, jobs)
    found = {"content_hash": corpus.content_hash, "directory": str(corpus.directory)}
    if as_json:
        _print_json({"schema_version": 1, **found})
    else:
        print(*found.values())


@data_app.command("check")
def data_check(overrides: Overrides = None, config_dir: ConfigDir = None) -> None:
    """Check the prepared data against its checksums; damaged data is discarded.

    Example: `moebench data check data=folder data.path=texts`
    """
    corpus = _corpus(overrides, config_dir)
    corpus.check()
    print(f"{corpus.directory}: whole and untouched")


@data_app.command("show")
def data_show(
    overrides: Overrides = None, as_json: AsJson = False, config_dir: ConfigDir = None
) -> None:
    """Show the domains of the data: documents, sizes and a sample of each.

    Example: `moebench data show data=folder data.path=texts`
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from moebench.records import printable

    corpus = _corpus(overrides, config_dir)
    rows = corpus.describe()
    if as_json:
        _print_json({"schema_version": 1, "content_hash": corpus.content_hash, "domains": rows})
        return
    title = f"data {corpus.content_hash[:10]}"
    table = Table(title=title, title_justify="left", expand=True)
    table.add_column("domain")
    for column in ("train docs", "MB", "valid docs", "kB", "overlap"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("sample", no_wrap=True, ratio=1)
    shown = ("domain", "train_documents", "train_mb", "valid_documents", "valid_kb")
    for row in rows:
        cells = [*(_cell(row[key]) for key in shown), f"{row['overlap']:.1%}", row["sample"]]
        table.add_row(*(Text(printable(cell)) for cell in cells))
    Console().print(table)


def _corpus(
    overrides: list[str] | None, config_dir: Path | None, processes: int | None = None
) -> Any:
    from moebench.config.compose import Composer
    from moebench.data.corpus import prepare
    from moebench.progress import DataDisplay

    data = Composer(config_dir).compose(overrides or []).data
    with DataDisplay() as display:
        return prepare(data, progress=display.say, bar=display.bar, processes=processes)


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False,
) -> None:
    if show:
        print(f"moebench {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; every error is one line on stderr."""
    stopped = []

    def stop(number: int, _frame: object) -> None:
        stopped.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, stop)
    try:
        code = app(prog_name="moebench", standalone_mode=False) or 0
        print(end="", flush=True)  # so that what cannot be written is known here
    except MoebenchError as error:
        code = _say_error(str(error), error.exit_code)
    except typer.TyperException as error:
        code = error.exit_code
        if error.format_message():  # else it is the help, which was printed already
            _say_error(error.format_message())
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        # whoever read our output has had enough, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        if os.environ.get("MOEBENCH_DEBUG"):
            raise
        code = _say_error(_unexpected(error), 1)
    if stopped and code == 130:  # typer makes that of every KeyboardInterrupt
        name = signal.Signals(stopped[0]).name
        _say_error(f"stopped by {name}; the same sweep, or a run with --resume, goes on from there")
        code = 130 if stopped[0] == signal.SIGINT else 75
    sys.exit(code)


def _unexpected(error: Exception) -> str:
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    return (
        f"unexpected {type(error).__name__}: {error}; this is a bug in moebench "
        "(MOEBENCH_DEBUG=1 shows where)"
    )


def _say_error(text: str, code: int = 1) -> int:
    line = "".join(each if each.isprintable() else "?" for each in " ".join(text.split()))
    print(f"error: {line}", file=sys.stderr)
    return code


def _print_json(content: dict[str, Any]) -> None:
    print(json.dumps(content, indent=2))


def _cell(value: Any) -> str:
    return f"{value:,.2f}" if isinstance(value, float) else str(value)


def _print_summary(path: Path, summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None)
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
        if isinstance(summary.get(key), int | float):
            table.add_row(key, f"{summary[key]:,.4g}")
    print(path)
    Console().print(table)


def _print_plan(plan: Any, launcher: Any, to: Any) -> None:
    """An arm in each line; what all runs have in common stands above."""
    from rich.table import Table
    from rich.text import Text

    from moebench.progress import say

    arms: dict[str, list[Any]] = {}
    for job in plan.jobs:
        arms.setdefault(job.arm_hash, []).append(job)
    size = f", size {plan.size}" if plan.size else ""
    common = [
        each for each in plan.jobs[0].overrides if all(each in job.overrides for job in plan.jobs)
    ]
    say(f"{plan.slug}{size}: {len(plan.jobs)} runs. {plan.question}".strip(), to)
    if common:
        say(f"all runs: {' '.join(common)}", to)
    table = Table()
    for column in ("arm", "overrides", "seeds", "steps", "done"):
        table.add_column(column, overflow="fold")
    baseline = next(job.arm_hash for job in plan.jobs if job.arm == plan.baseline)
    for name, same in arms.items():
        own = [
            each
            for each in same[0].overrides
            if each not in common and not each.startswith("seed=")
        ]
        row = (
            same[0].arm + (" (baseline)" if name == baseline else ""),
            " ".join(own),
            " ".join(str(job.seed) for job in same),
            str(same[0].config["train"]["steps"]),
            f"{sum(launcher.record(job).is_done() for job in same)}/{len(same)}",
        )
        table.add_row(*map(Text, row))
    to.print(table)


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

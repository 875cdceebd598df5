"""The command line: parse, call one function, print.

stdout carries what was asked for, stderr progress and errors. Nothing heavy is imported before a
command needs it, so that `--help` is quick.
"""

import json
import os
import re
import shlex
import signal
import sys
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from moebench import __version__
from moebench.cli import completion
from moebench.errors import ConfigError, MoebenchError, RecordError

app = typer.Typer(
    name="moebench",
    help="Over which tokens should a Mixture-of-Experts router be balanced, and what does it cost "
    "and buy? Trains small MoE language models that differ in nothing else, and compares them.",
    epilog="Exit codes: 0 done, 1 failed, 2 a wrong word, key, value or file, 3 a sweep of which "
    "some runs failed, 75 stopped by SIGTERM or SIGUSR1, 130 by Ctrl-C.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
)
data_app = typer.Typer(help="Prepare, show or check the text that runs train on.")
app.add_typer(data_app, name="data", no_args_is_help=True)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="key=value and group=preset, as in scope=global balance_bsz=128",
        autocompletion=completion.overrides,
    ),
]
RunsDir = Annotated[Path, typer.Option("--runs-dir", help="where records lie")]
ConfigDir = Annotated[
    Path | None, typer.Option("--config-dir", help="a folder of your own presets, beside conf/")
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON to stdout")]
Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin", metavar="MODULE", help="a module or .py file with a method of your own"
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="say what would be done; prepare the data, write no run")
]
PrintConfig = Annotated[
    bool,
    typer.Option("--print-config", help="print the resolved config of each run as YAML and stop"),
]

RUNS = Path("runs")


def _number(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) < 2**16):
        raise typer.BadParameter(f"{text}: must be a whole number from 1 to 65535")
    return int(text)


def _duration(text: str) -> float:
    """Seconds; from 90, 90s, 30m, 2h or 1d."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    seconds = (
        float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]] if found else 0
    )
    if not 0 < seconds < 1e9:
        raise typer.BadParameter(f"{text}: must be a time above 0, as in 90s, 30m or 2h")
    return seconds


@app.command()
def train(
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with an unfinished run")] = False,
    force: Annotated[bool, typer.Option("--force", help="start afresh")] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    print_config: PrintConfig = False,
    config_dir: ConfigDir = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="start from a record's config.yaml")
    ] = None,
    plugin: Plugins = None,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Train one run: one arm with one seed.

    Example: `moebench train scope=global balance_bsz=128`
    """
    from moebench.cli.progress import TrainDisplay, say
    from moebench.config.compose import Composer, to_dict, to_yaml

    if resume and force:
        raise ConfigError("--resume --force: one goes on with a run, one starts afresh; keep one")
    _load(plugin)
    made = Composer(config_dir).compose(overrides or [], base=config)
    if print_config:
        if as_json:
            _print_json({"schema_version": 1, "config": to_dict(made)})
        else:
            print(to_yaml(made), end="")
        return
    from moebench.config.identity import coefficients, run_name
    from moebench.data.batches import check_epochs
    from moebench.data.corpus import prepare
    from moebench.records import Record, find_records

    corpus = prepare(made.data, progress=say)
    record = Record(runs_dir / run_name(made, corpus.content_hash))
    if dry_run:
        steps, done = made.train.steps, record.is_done()
        if not done:
            check_epochs(corpus, made)
        if as_json:
            said = {"run": str(record.path), "steps": steps, "done": done}
            _print_json({"schema_version": 1, **said})
        else:
            already = " (is done already)" if done else ""
            print(f"{record.path}: {steps} steps of {made.global_bsz} sequences{already}")
        return
    if resume and not record.exists():
        others = [each.name for each in find_records(runs_dir) if not each.is_done()]
        known = f"; unfinished are {', '.join(others[:3])}" if others else ""
        raise RecordError(
            f"{record.path}: there is no such run to go on with{known}; start it without --resume"
        )
    if record.is_done() and not force:
        other = record.other_version()
        say(f"{record.path}: is done already{other and f', by {other}'}")
    else:
        from moebench.experiment import run_experiment  # torch, only here

        if os.environ.get("RANK", "0") != "0":  # of torchrun; the first rank tells
            run_experiment(made, corpus, runs_dir, resume=resume, force=force)
            return
        weights = [f"{term}: {value:g}" for term, value in coefficients(made).items()]
        say(f"{record.path}  balance loss per router: {', '.join(weights) or 'none'}")
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
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            parser=_duration,
            metavar="TIME",
            help="end a run that ends no step for so long, as in 90s, 30m or 2h; give more than "
            "its start, an evaluation or a compilation takes",
        ),
    ] = None,
    status: Annotated[
        bool,
        typer.Option(
            "--status",
            help="say how far the runs are and stop; of the last sweep, of a study by its name, "
            "or of the same words as the sweep",
        ),
    ] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    print_config: PrintConfig = False,
    config_dir: ConfigDir = None,
    plugin: Plugins = None,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Train every run of a study or of a grid; what is done already is left as it is.

    Examples: `moebench sweep study=demo`, `moebench sweep scope=micro,shuffled,global seed=0,1,2`,
    `moebench sweep study=demo --status`
    """
    from rich.console import Console

    from moebench.cli.progress import SweepDisplay, console, say
    from moebench.config.compose import Composer
    from moebench.machine import usable_cores
    from moebench.study import LocalLauncher, find_plan, make_plan
    from moebench.study.status import look, render, without_run

    words = overrides or []
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError(
            "WORLD_SIZE: a sweep starts processes of its own; start it without torchrun"
        )
    if status and dry_run:
        raise ConfigError("--status --dry-run: one looks at runs, one plans them; keep one")
    _load(plugin)
    if status and len(words) < 2 and "=" not in "".join(words):
        plan = find_plan(runs_dir, *words)
    else:
        plan, _ = make_plan(Composer(config_dir), words, progress=say)
    if status:
        if as_json:
            _print_json(_plan_json(plan, runs_dir))
        else:
            render(plan, look(plan, runs_dir), Console())
        return
    if print_config:
        _print_configs(plan, as_json)
        return
    from moebench.config.compose import from_dict
    from moebench.study.stacking import on_gpu, stack_size

    # stacks share a GPU badly with others: one process fills it
    stacking = any(on_gpu(from_dict(job.config)) for job in plan.jobs)
    workers = jobs or (1 if stacking else usable_cores())
    launcher = LocalLauncher(plan, runs_dir, workers, timeout, stack_size)
    _print_plan(plan, launcher, Console() if dry_run and not as_json else console())
    if not dry_run:
        plan.write(runs_dir)
        # closed at once whatever happens here, so that no process outlives an error or Ctrl-C
        with SweepDisplay(launcher) as display, closing(launcher.run()) as looks:
            for _ in looks:
                display.refresh()
    if as_json:
        _print_json(_plan_json(plan, runs_dir))
    elif not dry_run:
        where = [] if runs_dir == RUNS else ["--runs-dir", str(runs_dir)]
        say(shlex.join(["moebench", "report", "--study", plan.slug, *where]) + " compares the runs")
    for job, reason in launcher.failed:
        _say_error(f"{job.run}: {without_run(job.run, reason)}")
    if launcher.failed:
        raise typer.Exit(3)


@app.command()
def report(
    directories: Annotated[
        list[Path] | None,
        typer.Argument(
            help="runs, or folders of runs; all of --runs-dir; or diff A B for two runs or studies",
            autocompletion=completion.runs,
        ),
    ] = None,
    study: Annotated[
        str | None,
        typer.Option("--study", help="only the runs of a study", autocompletion=completion.studies),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option("--baseline", help="the arm to compare with")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", metavar="KEY=VALUE,..", help="only such runs; may be repeated"),
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option("--by", metavar="KEY", help="a table for each value; may be repeated"),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            "--metrics", metavar="NAME,..", help="show these alone; * and ? stand for any"
        ),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option("--sort", metavar="NAME", help="order arms by a metric; -NAME turns it round"),
    ] = None,
    at: Annotated[
        int | None,
        typer.Option("--at", min=0, metavar="STEP", help="at an evaluation on the way"),
    ] = None,
    per_domain: Annotated[
        bool, typer.Option("--per-domain", help="add the nats of each domain")
    ] = False,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="table, md, csv, json, latex or parquet",
            autocompletion=completion.formats,
        ),
    ] = "table",
    plots: Annotated[
        Path | None, typer.Option("--plots", metavar="DIR", help="write SVG and PNG there")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="write a page with all of it")
    ] = None,
    as_json: AsJson = False,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Compare arms: load, specialisation, perplexity and paired differences with intervals.

    Examples: `moebench report --study demo`, `moebench report --study demo --html report.html`,
    `moebench report diff RUN RUN`
    """
    from moebench.cli.progress import say
    from moebench.report import compare_two, make_report, write

    form = "json" if as_json else form
    if directories and str(directories[0]) == "diff":
        print(compare_two(directories[1:], runs_dir, form), end="")
        return
    made = make_report(
        directories or [runs_dir],
        study=study,
        baseline=baseline,
        runs_dir=runs_dir,
        where=where or (),
        by=by or (),
        metrics=[each for each in (metrics or "").split(",") if each],
        sort=sort,
        at=at,
        per_domain=per_domain,
    )
    text = made.encode(form)
    if plots is not None:
        for table in made.tables:
            for plot in made.plots(table):
                name = f"{plot.name}-{table.index + 1}" if len(made.tables) > 1 else plot.name
                write(plots / f"{name}.svg", plot.svg)
                write(plots / f"{name}.png", plot.png)
        say(f"{plots}: holds the plots")
    if html is not None:
        write(html, made.page(shlex.join(["moebench", *sys.argv[1:]])).encode())
        say(f"{html}: open it in a browser")
    elif plots is None or form != "table":
        if form == "parquet" and sys.stdout.isatty():
            raise ConfigError(
                "--format parquet: is no text; send it to a file, as in > report.parquet"
            )
        sys.stdout.buffer.write(text)


@app.command()
def evaluate(
    runs: Annotated[
        list[Path], typer.Argument(help="runs with a checkpoint", autocompletion=completion.runs)
    ],
    tasks: Annotated[str, typer.Option("--tasks", help="blimp, cloze or both")] = "cloze",
    blimp: Annotated[
        Path, typer.Option("--blimp", help="the folder of BLiMP's *.jsonl or *.jsonl.gz")
    ] = Path("blimp"),
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="pairs of each paradigm of BLiMP; all by default"),
    ] = None,
    questions: Annotated[
        int, typer.Option("--questions", min=1, help="cloze questions of each domain, at most")
    ] = 100,
    seed: Annotated[int, typer.Option("--seed", min=0, help="of the cloze questions")] = 0,
    step: Annotated[
        int | None, typer.Option("--step", help="of the checkpoint; the last by default")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Try runs on tasks, and keep what comes out in their records, sealed.

    Examples: `moebench evaluate runs/RUN`, `moebench evaluate runs/RUN --tasks blimp,cloze`
    """
    from rich.console import Console

    from moebench.cli.progress import counted
    from moebench.evaluate import Settings, check_names, open_checkpoint, run_tasks
    from moebench.inspect.render import show_tasks
    from moebench.records import Record

    names, settings = check_names(tasks), Settings(blimp, limit, questions, seed)
    opened = [open_checkpoint(Record(run), step) for run in runs]
    found = {
        str(each.record.path): run_tasks(
            each, names, settings, lambda what, items, total: counted(items, total, what)
        )
        for each in opened
    }
    if as_json:
        _print_json({"schema_version": 1, "tasks": found})
    else:
        show_tasks(found, Console())


@app.command()
def inspect(
    run: Annotated[
        Path | None,
        typer.Argument(help="a run, or nothing with --hf", autocompletion=completion.runs),
    ] = None,
    text: Annotated[
        str | None, typer.Option("--text", help="show which expert each token of this text takes")
    ] = None,
    hf: Annotated[
        Path | None,
        typer.Option("--hf", help="a Hugging Face MoE checkpoint on disk, in place of a run"),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="a folder of text by domain, for --hf")
    ] = None,
    sequences: Annotated[
        int, typer.Option("--sequences", min=1, help="of each domain, for --hf")
    ] = 32,
    seq_len: Annotated[int, typer.Option("--seq-len", min=2, help="in tokens, for --hf")] = 128,
    micro_bsz: Annotated[
        int, typer.Option("--micro-bsz", min=1, help="sequences in a micro-batch, for --hf")
    ] = 4,
    step: Annotated[
        int | None,
        typer.Option("--step", help="of the evaluation or checkpoint; the last by default"),
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(
            "--layer",
            help="whose experts are listed, the last by default; or of --text, all by default",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look at what routers do: loads, the domains of each expert, dead experts, single tokens.

    Examples: `moebench inspect runs/RUN`, `moebench inspect runs/RUN --text "To be or not to be"`,
    `moebench inspect --hf checkpoint --data texts`
    """
    from rich.console import Console

    from moebench.inspect import inspect_run, inspect_text
    from moebench.inspect.render import show, show_text

    if (run is None) == (hf is None):
        raise ConfigError("inspect: name either a run, or --hf with the folder of a checkpoint")
    if hf is not None:
        from moebench.inspect.hf_checkpoint import inspect_checkpoint

        if text is not None or step is not None or data is None:
            raise ConfigError("--hf: takes --data with a folder of text, and no --text or --step")
        found = inspect_checkpoint(
            hf, data, sequences=sequences, seq_len=seq_len, micro_bsz=micro_bsz
        )
    elif text is not None:
        assert run is not None
        tokens = inspect_text(run, text, step)
        if as_json:
            _print_json({"schema_version": 1, **tokens._asdict()})
        else:
            show_text(tokens, Console(), layer)
        return
    else:
        assert run is not None
        found = inspect_run(run, step)
    if as_json:
        _print_json({"schema_version": 1, **found.to_dict()})
    else:
        show(found, Console(), layer)


@app.command()
def dashboard(
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="make all views again from the records first")
    ] = False,
    port: Annotated[
        int | None,
        typer.Option(
            "--port", parser=_number, metavar="N", help="of the page; a free one by default"
        ),
    ] = None,
    as_json: AsJson = False,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Show the runs in TensorBoard, on this machine alone, until Ctrl-C.

    Examples: `moebench dashboard`, `moebench dashboard --rebuild`
    """
    from moebench.cli.progress import counted, say
    from moebench.dashboard import lacking_views, make_views, serve

    lacking = lacking_views(runs_dir, again=rebuild)
    for trouble in counted(make_views(lacking), len(lacking), "views made"):
        if trouble:
            say(f"left as it is: {trouble}")

    def tell(url: str) -> None:
        if as_json:
            _print_json({"schema_version": 1, "url": url})
        else:
            print(url)
        print(end="", flush=True)  # it may be read long before the end
        say("Ctrl-C ends it")

    serve(runs_dir, port, tell)


@app.command()
def verify(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="runs, or folders of runs; all of --runs-dir", autocompletion=completion.runs
        ),
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
def bench(
    overrides: Overrides = None,
    study: Annotated[
        str | None,
        typer.Option(
            "--study",
            help="time every arm of a study that was swept, and keep it beside its plan",
            autocompletion=completion.studies,
        ),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            "--rounds", parser=_number, metavar="N", help="steps of each that count; 9 by default"
        ),
    ] = None,
    as_json: AsJson = False,
    config_dir: ConfigDir = None,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Time training steps on this machine, arm by arm in turn; nothing else should run beside.

    Examples: `moebench bench`, `moebench bench scope=micro model=small`,
    `moebench bench --study demo`
    """
    from rich.console import Console
    from rich.table import Table

    from moebench.cli.progress import counted, say
    from moebench.config.compose import Composer, from_dict
    from moebench.config.identity import label
    from moebench.records import COSTS, write_json
    from moebench.study import find_plan

    plan = None
    if study is not None:
        if overrides:
            raise ConfigError(f"{overrides[0]}: --study times its arms as they are; leave it out")
        plan = find_plan(runs_dir, study)
        arms = {job.arm_hash: job for job in reversed(plan.jobs)}  # the first seed of each
        jobs = [job for job in plan.jobs if arms[job.arm_hash] is job]
        configs = {job.arm_hash: from_dict(job.config) for job in jobs}
    else:
        config = Composer(config_dir).compose(overrides or [])
        configs = {label(config): config}
    from moebench.bench import ROUNDS, machine_of, time_arms  # torch, only here

    rounds = rounds or ROUNDS
    found: dict[str, Any] = {}
    looks = time_arms(list(configs.values()), runs_dir, rounds, say)
    for timings in counted(looks, rounds, "rounds"):
        found = {name: asdict(each) for name, each in zip(configs, timings, strict=True)}
    if plan is not None:
        path = plan.path(runs_dir).with_name(COSTS)
        machine = machine_of(next(iter(configs.values())))
        write_json(path, {name: {**each, "machine": machine} for name, each in found.items()})
        say(f"{path}: holds the timing of {len(found)} arms, which moebench report shows")
    if as_json:
        _print_json({"schema_version": 1, "arms": found})
        return
    table = Table(box=None, pad_edge=False)
    columns = ("arm", "tokens/s", "ratio", "MFU", "loading", "balancing", "statistics")
    for column in columns:
        table.add_column(column, justify="left" if column == "arm" else "right", no_wrap=True)
    for name, each in found.items():
        shares = [f"{each[key]:.1%}" for key in ("mfu", "loading", "balancing", "statistics")]
        counted_first = " (counts first)" if each["counting_seconds"] else ""
        speed = f"{each['tokens_per_second']:,.0f}"
        table.add_row(label(configs[name]) + counted_first, speed, f"{each['ratio']:.2f}", *shares)
    Console().print(table)


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
def data_check(
    overrides: Overrides = None, as_json: AsJson = False, config_dir: ConfigDir = None
) -> None:
    """Check the prepared data against its checksums; damaged data is discarded.

    Example: `moebench data check data=folder data.path=texts`
    """
    corpus = _corpus(overrides, config_dir)
    corpus.check()
    if as_json:
        found = {"content_hash": corpus.content_hash, "directory": str(corpus.directory)}
        _print_json({"schema_version": 1, **found, "damage": []})
    else:
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
    for column in ("docs", "MB", "Mtokens", "valid docs", "kB", "overlap"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("sample", no_wrap=True, ratio=1)
    for row in rows:
        cells = [
            *(row["domain"], row["train_documents"], row["train_mb"], row["train_tokens"] / 1e6),
            *(row["valid_documents"], row["valid_kb"], f"{row['overlap']:.1%}", row["sample"]),
        ]
        table.add_row(*(Text(printable(_cell(cell))) for cell in cells))
    Console().print(table)


def _corpus(
    overrides: list[str] | None, config_dir: Path | None, processes: int | None = None
) -> Any:
    from moebench.cli.progress import DataDisplay
    from moebench.config.compose import Composer
    from moebench.data.corpus import prepare

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
        for line in error.lines:
            _say_error(line)
        code = error.exit_code
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
        training = {"train", "sweep"} & {*sys.argv}
        more = "; the same sweep, or a run with --resume, goes on from there" if training else ""
        _say_error(f"stopped by {name}{more}")
        code = 130 if stopped[0] == signal.SIGINT else 75
    sys.exit(code)


def _load(plugins: list[str] | None) -> None:
    from moebench.methods import load_plugin

    for each in plugins or []:
        load_plugin(each)


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


def _print_configs(plan: Any, as_json: bool) -> None:
    from moebench.config.compose import from_dict, to_yaml

    if as_json:
        runs = [{"run": job.run, "config": job.config} for job in plan.jobs]
        _print_json({"schema_version": 1, "runs": runs})
        return
    for job in plan.jobs:  # a YAML document each
        print(f"--- # {job.run}", to_yaml(from_dict(job.config)), sep="\n", end="")


def _print_plan(plan: Any, launcher: Any, to: Any) -> None:
    """An arm in each line; what all runs have in common stands above."""
    from rich.table import Table
    from rich.text import Text

    from moebench.cli.progress import say

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


def _plan_json(plan: Any, runs_dir: Path) -> dict[str, Any]:
    from moebench.study.status import look, seconds_left

    runs = look(plan, runs_dir)
    return {
        "schema_version": 1,
        "study": plan.slug,
        "seconds_left": seconds_left(runs),
        "runs": [{**asdict(run), "run": str(runs_dir / run.run)} for run in runs],
    }

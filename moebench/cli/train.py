"""`moebench train`: one run."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
    command_line,
    load_plugins,
    path,
    tracked,
)
from moebench.cli.output import print_json, print_message, stdout_console
from moebench.errors import ConfigError, RecordError
from moebench.machine import importing

if TYPE_CHECKING:
    from moebench.config.schema import ExperimentConfig, RunConfig
    from moebench.config.treatment import Treatment
    from moebench.data.corpus import Corpus
    from moebench.records import Record
    from moebench.train.ranks import Ranks

Resume = Annotated[bool, typer.Option("--resume", help="continue an unfinished run")]
Force = Annotated[bool, typer.Option("--force", help="start over, even if the run exists")]
Init = Annotated[
    Path | None,
    typer.Option(
        "--init",
        metavar="DIR",
        parser=path,
        help="start from the weights of a Hugging Face checkpoint, as moebench export writes it "
        "(model.init)",
    ),
]
Config = Annotated[
    Path | None, typer.Option("--config", help="start from the config.yaml of a run")
]


def train(
    overrides: Overrides = None,
    resume: Resume = False,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    print_config: PrintConfig = False,
    config_dir: ConfigDir = None,
    config: Config = None,
    init: Init = None,
    track: Track = None,
    plugin: Plugins = None,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Train one run: one arm with one seed.

    Example: `moebench train scope=global balance_bsz=128`
    """
    if resume and force:
        raise ConfigError("--resume --force: one continues a run, one starts over; use only one")
    with importing():
        from moebench import device
        from moebench.config.compose import Composer
        from moebench.config.overrides import quoted
    load_plugins(plugin)
    words = [*(overrides or []), *([f"model.init={quoted(str(init))}"] if init else [])]
    made = Composer(config_dir, device.suited_precision).compose(words, base=config)
    if print_config:
        _print_config(made, as_json)
        return
    check_tracker(track)
    from moebench.config.identity import run_name
    from moebench.config.treatment import Treatment
    from moebench.data.corpus import prepare
    from moebench.records import Record

    corpus = prepare(made.data, progress=print_message)
    treatment = Treatment.of(made)
    record = Record(runs_dir / run_name(treatment, corpus.content_hash))
    if dry_run:
        _print_plan(made, corpus, record, as_json)
        return
    if resume:
        _check_exists(record, runs_dir)
    # with several ranks, the first one decides this for all
    if record.is_done() and not force and os.environ.get("WORLD_SIZE", "1") == "1":
        record.refuse_changes()
        other = record.other_version()
        print_message(f"{record.path}: already done{other and f', by {other}'}")
    else:
        with tracked(track if _is_first_rank() else None, [record]):
            _train(treatment, corpus, record, runs_dir, resume, force)
    if _is_first_rank():
        _print_summary(record, as_json)


def _print_config(config: "ExperimentConfig", as_json: bool) -> None:
    from moebench.config.compose import to_dict, to_yaml

    if as_json:
        print_json({"config": to_dict(config)})
    else:
        print(to_yaml(config), end="")


def _print_plan(
    config: "ExperimentConfig", corpus: "Corpus", record: "Record", as_json: bool
) -> None:
    from moebench.data.batches import check_epochs
    from moebench.data.maps import check_map

    steps, done = config.train.steps, record.is_done()
    if done:
        record.refuse_changes()
    else:
        check_epochs(corpus, config)
        check_map(config, corpus)
        if config.model.init:  # torch reads its weights
            from moebench.train.starting import check_start

            check_start(config, corpus)
    if as_json:
        print_json({"run": str(record.path), "steps": steps, "done": done})
    else:
        already = " (already done)" if done else ""
        words = f"{steps} steps of {config.global_bsz} sequences{_in_precision(config, ' in ')}"
        print(f"{record.path}: {words}{already}")


def _in_precision(config: "ExperimentConfig", before: str) -> str:
    """The precision in words; nothing for fp32, the default on a CPU."""
    return "" if config.train.precision == "fp32" else before + config.train.precision


def _threads(config: "ExperimentConfig", run: "RunConfig", ranks: "Ranks", resumed: bool) -> str:
    """The threads of a run, and why they are fewer than the cores where nobody asked for that.

    The record of a run that is resumed does not tell whether somebody did.
    """
    from moebench.experiment.execution import available_threads, suited_threads

    text = f"{run.threads} thread{'s' if run.threads != 1 else ''}"
    suited, cores = suited_threads(replace(config, run=run), ranks), available_threads(ranks)
    if resumed or config.run.threads is not None or suited == cores:
        return text
    return f"{text} of {cores}, as its products are small"


def _faster(config: "ExperimentConfig", device: str) -> str:
    """That bf16 would be faster here, in words; nothing if it would not be, or is taken."""
    from moebench.train.precision_gain import LEAST, bf16_gain

    if device != "cpu" or config.train.precision != "fp32" or (gain := bf16_gain()) < LEAST:
        return ""
    return f" (train.precision=bf16: about {gain:.1f} times as fast here)"


def _check_exists(record: "Record", runs_dir: Path) -> None:
    from moebench.records import find_records

    if record.exists():
        return
    unfinished = [other.name for other in find_records(runs_dir) if not other.is_done()]
    names = f"; unfinished runs are {', '.join(unfinished[:3])}" if unfinished else ""
    raise RecordError(
        f"{record.path}: there is no such run to resume{names}; start it without --resume"
    )


def _train(
    treatment: "Treatment",
    corpus: "Corpus",
    record: "Record",
    runs_dir: Path,
    resume: bool,
    force: bool,
) -> None:
    """Train with a progress display; under torchrun, only the first rank has one."""
    with importing():
        from moebench.cli.progress import TrainDisplay
        from moebench.config.identity import coefficients
        from moebench.experiment import check_run, run_experiment  # imports torch
        from moebench.experiment.execution import resolved
        from moebench.train.ranks import Ranks, world_size

    config = treatment.config
    start = partial(
        run_experiment,
        treatment,
        corpus,
        runs_dir,
        command=command_line(),
        resume=resume,
        force=force,
    )
    if not _is_first_rank():
        start()
        return
    check_run(treatment, corpus)  # first, so that nothing seems to have begun
    weights = ", ".join(f"{term}: {value:g}" for term, value in coefficients(treatment).items())
    ranks = Ranks(size=world_size())
    run = resolved(config, record if resume else None, ranks)
    of_run = f"{_in_precision(config, ', ')}, {_threads(config, run, ranks, resume)}"
    where = f"{run.device}{of_run}{_faster(config, run.device)}"
    print_message(f"{record.path}  {where}; balance loss per router: {weights or 'none'}")
    with TrainDisplay(record.name, config.train.steps) as display:
        start(on_event=lambda event: display.update(event.step, event.row))


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"  # torchrun sets it


def _print_summary(record: "Record", as_json: bool) -> None:
    summary = record.summary()
    if as_json:
        print_json({"run": str(record.path), "summary": summary})
        return
    print(record.path)
    stdout_console().print(_summary_table(summary))


def _summary_table(summary: dict[str, Any]) -> Any:
    from rich.table import Table

    from moebench.catalogue import METRICS

    table = Table(show_header=False, box=None)
    for key in (*(metric.name for metric in METRICS.values() if metric.printed), "seconds"):
        if isinstance(summary.get(key), int | float):
            table.add_row(key, f"{summary[key]:,.4g}")
    return table

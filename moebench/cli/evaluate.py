"""`moebench evaluate`: accuracy of runs on tasks."""

from pathlib import Path
from typing import Annotated

import typer

from moebench.cli.options import (
    AsJson,
    CheckpointStep,
    Plugins,
    TextDomain,
    completion,
    load_plugins,
    path,
)
from moebench.cli.output import print_json, print_message, stdout_console
from moebench.errors import apply_to_all

Runs = Annotated[
    list[Path],
    typer.Argument(parser=path, help="runs with a checkpoint", autocompletion=completion("runs")),
]
Tasks = Annotated[str, typer.Option("--tasks", help="blimp, cloze, or both as blimp,cloze")]
Blimp = Annotated[
    Path, typer.Option("--blimp", help="directory with the *.jsonl or *.jsonl.gz files of BLiMP")
]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit", min=1, help="maximum number of pairs per BLiMP paradigm; by default all"
    ),
]
Questions = Annotated[
    int, typer.Option("--questions", min=1, help="maximum number of cloze questions per domain")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="seed of the cloze questions")]


def evaluate(
    runs: Runs,
    tasks: Tasks = "cloze",
    blimp: Blimp = Path("blimp"),
    limit: Limit = None,
    questions: Questions = 100,
    seed: Seed = 0,
    step: CheckpointStep = None,
    domain: TextDomain = None,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate runs on tasks, and store the results, sealed, in their records.

    Examples: `moebench evaluate runs/RUN`, `moebench evaluate runs/RUN --tasks blimp,cloze`
    """
    from moebench.cli.progress import track
    from moebench.evaluate import Settings, check_domain, check_names, open_checkpoint, run_tasks
    from moebench.inspect.render import show_tasks
    from moebench.records import Record

    load_plugins(plugin)
    names, settings = check_names(tasks), Settings(blimp, limit, questions, seed, domain)
    checkpoints = [open_checkpoint(Record(run), step) for run in runs]
    apply_to_all(lambda checkpoint: check_domain(checkpoint, names, settings), checkpoints)
    for note in filter(None, (checkpoint.note for checkpoint in checkpoints)):
        print_message(note)
    results = {
        str(checkpoint.record.path): run_tasks(
            checkpoint,
            names,
            settings,
            lambda what, items, total: track(items, total, what),
        )
        for checkpoint in checkpoints
    }
    if as_json:
        print_json({"tasks": results})
    else:
        show_tasks(results, stdout_console())

"""`moebench export`: a checkpoint for Hugging Face."""

from pathlib import Path
from typing import Annotated

import typer

from moebench.cli.options import AsJson, CheckpointStep, Plugins, TrainedRun, load_plugins, path
from moebench.cli.output import print_json, print_message

To = Annotated[Path, typer.Option("--to", parser=path, help="new folder for the model")]


def export(
    run: TrainedRun,
    to: To,
    step: CheckpointStep = None,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Write a run's model as a Hugging Face checkpoint (Qwen3-MoE), with its tokenizer.

    `AutoModelForCausalLM.from_pretrained` loads it. A model that Qwen3-MoE cannot hold is refused.

    Example: `moebench export runs/RUN --to model`
    """
    from moebench.errors import RecordError
    from moebench.evaluate import open_checkpoint
    from moebench.export import export as write
    from moebench.records import Record

    load_plugins(plugin)
    checkpoint = open_checkpoint(Record(run), step)
    try:
        write(checkpoint, to)
    except OSError as error:
        raise RecordError(
            f"--to={to}: cannot be written ({error.strerror}); name a folder that can be"
        ) from None
    if as_json:
        print_json({"run": str(run), "step": checkpoint.step, "model": str(to)})
    else:
        print_message(f"{to}: step {checkpoint.step} of {checkpoint.record.name}, as Qwen3-MoE")

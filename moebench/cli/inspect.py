"""`moebench inspect`: what routers do, of a run, a Hugging Face checkpoint or one's own logs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moebench.cli.options import AsJson, Plugins, TextDomain, completion, load_plugins, path
from moebench.cli.output import print_json, print_message, stdout_console
from moebench.errors import ConfigError

if TYPE_CHECKING:
    from moebench.inspect import Inspection

Run = Annotated[
    Path | None,
    typer.Argument(
        parser=path,
        help="a run; leave it out with --hf or --counts",
        autocompletion=completion("runs"),
    ),
]
Text = Annotated[
    str | None, typer.Option("--text", help="show which experts each token of this text uses")
]
HuggingFace = Annotated[
    Path | None,
    typer.Option("--hf", help="directory of a Hugging Face MoE checkpoint, instead of a run"),
]
Data = Annotated[
    Path | None, typer.Option("--data", help="with --hf: directory of text, one part per domain")
]
Sequences = Annotated[
    int, typer.Option("--sequences", min=1, help="with --hf: sequences per domain")
]
SeqLen = Annotated[int, typer.Option("--seq-len", min=2, help="with --hf: tokens per sequence")]
MicroBsz = Annotated[
    int, typer.Option("--micro-bsz", min=1, help="with --hf: sequences per micro-batch")
]
Step = Annotated[
    int | None,
    typer.Option("--step", help="step of the evaluation or checkpoint; by default the last"),
]
Replay = Annotated[
    Path | None,
    typer.Option(
        "--replay",
        parser=path,
        metavar="RUN",
        help="compare with the experts that another run selected for the same text",
        autocompletion=completion("runs"),
    ),
]
CountsFile = Annotated[
    Path | None,
    typer.Option(
        "--counts",
        parser=path,
        metavar="FILE",
        help="expert counts of any trainer (docs/inspecting.md), .npz or .parquet; no run then",
    ),
]
TopK = Annotated[
    int | None, typer.Option("--top-k", min=1, help="with --counts: experts of a token")
]
CostFile = Annotated[
    Path | None,
    typer.Option(
        "--cost",
        parser=path,
        metavar="FILE",
        help="with --counts: CSV of tokens,ms, the time of a rank's experts in one layer",
    ),
]
Layer = Annotated[
    int | None,
    typer.Option(
        "--layer",
        help="MoE layer whose experts are listed; by default the last, or all with --text",
    ),
]


def inspect(
    run: Run = None,
    text: Text = None,
    hf: HuggingFace = None,
    data: Data = None,
    sequences: Sequences = 32,
    seq_len: SeqLen = 128,
    micro_bsz: MicroBsz = 4,
    step: Step = None,
    layer: Layer = None,
    domain: TextDomain = None,
    replay: Replay = None,
    counts: CountsFile = None,
    top_k: TopK = None,
    cost: CostFile = None,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Show what routers do: load, domains of each expert, dead experts, single tokens.

    Examples: `moebench inspect runs/RUN`, `moebench inspect runs/RUN --text "To be or not to be"`,
    `moebench inspect --hf checkpoint --data texts`, `moebench inspect --counts FILE --top-k 2`
    """
    load_plugins(plugin)
    if [run, hf, counts].count(None) != 2:
        raise ConfigError(
            "inspect: name either a run, or a checkpoint directory with --hf, or a file with "
            "--counts"
        )
    if counts is not None:
        others = {"text": text, "data": data, "step": step, "domain": domain, "replay": replay}
        given = [f"--{name}" for name, value in others.items() if value is not None]
        _print_counts(counts, top_k, cost, layer, given, as_json)
        return
    if top_k is not None or cost is not None:
        raise ConfigError("--top-k, --cost: say more of a file of counts; add --counts")
    if data is not None and hf is None:
        raise ConfigError(f"--data={data}: is text for a checkpoint; add --hf")
    if domain is not None and text is None:
        raise ConfigError(f"--domain={domain}: says what a text is of; add --text")
    if replay is not None:
        _print_exchange(run, replay, step, as_json, alone=text is None and layer is None)
        return
    if hf is not None:
        if text is not None or step is not None or data is None:
            raise ConfigError(
                "--hf: needs --data with a directory of text, and no --text or --step"
            )
        inspection = _inspect_checkpoint(hf, data, sequences, seq_len, micro_bsz)
    else:
        assert run is not None
        if text is not None:
            _print_text(run, text, step, layer, domain, as_json)
            return
        from moebench.inspect import inspect_run

        inspection = inspect_run(run, step)
    _print_inspection(inspection, layer, as_json)


def _print_inspection(inspection: "Inspection", layer: int | None, as_json: bool) -> None:
    if as_json:
        print_json(inspection.to_dict())
    else:
        from moebench.inspect.render import show

        show(inspection, stdout_console(), layer)


def _inspect_checkpoint(
    path: Path, data: Path, sequences: int, seq_len: int, micro_bsz: int
) -> "Inspection":
    """What the routers of a Hugging Face checkpoint do with text."""
    if sequences % micro_bsz:
        raise ConfigError(f"--micro-bsz={micro_bsz}: must divide --sequences={sequences}")
    from moebench.inspect.hf_loading import Checkpoint

    checkpoint = Checkpoint.open(path)  # before torch is imported, which takes seconds
    from moebench.inspect.hf_checkpoint import inspect_checkpoint

    return inspect_checkpoint(
        checkpoint, data, sequences=sequences, seq_len=seq_len, micro_bsz=micro_bsz
    )


def _print_counts(
    counts: Path,
    top_k: int | None,
    cost: Path | None,
    layer: int | None,
    others: list[str],
    as_json: bool,
) -> None:
    """Print what a file of counts says."""
    if others:
        raise ConfigError(f"--counts: does not go with {', '.join(others)}; leave it out")
    if top_k is None:
        raise ConfigError("--counts: needs --top-k, the experts of a token, as in --top-k 2")
    from moebench.inspect.own_counts import inspect_counts

    counted = inspect_counts(counts, top_k, cost)
    if as_json:
        print_json(counted.to_dict())
    else:
        from moebench.inspect.render import show_counts

        show_counts(counted, stdout_console(), layer)


def _print_exchange(
    run: Path | None, other: Path, step: int | None, as_json: bool, *, alone: bool
) -> None:
    """Print what a run makes of the experts that another run selected."""
    if run is None or not alone:
        raise ConfigError(f"--replay={other}: needs a run, and no --hf, --text or --layer")
    from moebench.inspect.exchange import exchange
    from moebench.inspect.render import show_exchange

    found = exchange(run, other, step)
    if as_json:
        print_json(found._asdict())
    else:
        show_exchange(found, stdout_console())


def _print_text(
    run: Path, text: str, step: int | None, layer: int | None, domain: str | None, as_json: bool
) -> None:
    """Print the experts of each token of a text."""
    from moebench.inspect import inspect_text
    from moebench.inspect.render import show_text

    routed = inspect_text(run, text, step, domain)
    if routed.note:
        print_message(routed.note)
    if as_json:
        print_json(routed._asdict())
    else:
        show_text(routed, stdout_console(), layer)

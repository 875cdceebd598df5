"""`moebench sample`: text from a trained model."""

from typing import Annotated

import typer

from moebench.cli.options import (
    AsJson,
    CheckpointStep,
    Plugins,
    TextDomain,
    TrainedRun,
    load_plugins,
)
from moebench.cli.output import print_json, print_message, stdout_console

Prompt = Annotated[str, typer.Option("--prompt", help="text to continue")]
Tokens = Annotated[int, typer.Option("--tokens", min=1, help="most tokens to add")]
Temperature = Annotated[
    float, typer.Option("--temperature", min=0, max=1e6, help="0 takes the likeliest token")
]
TopK = Annotated[
    int | None,
    typer.Option("--top-k", min=1, help="draw from so many of the likeliest; by default all"),
]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="seed of the draws")]
Experts = Annotated[bool, typer.Option("--experts", help="colour each token by its experts")]


def sample(
    run: TrainedRun,
    prompt: Prompt,
    tokens: Tokens = 200,
    temperature: Temperature = 0.8,
    top_k: TopK = None,
    seed: Seed = 0,
    experts: Experts = False,
    step: CheckpointStep = None,
    domain: TextDomain = None,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Continue a text with a trained model, and colour its tokens by expert if asked.

    Examples: `moebench sample runs/RUN --prompt "To be"`, `moebench sample runs/RUN --prompt
    "To be" --experts`
    """
    from moebench.evaluate import open_checkpoint
    from moebench.inspect import routed_text
    from moebench.inspect.render import show_text
    from moebench.records import Record, printable
    from moebench.sample import continued, decoded, encoded

    load_plugins(plugin)
    checkpoint = open_checkpoint(Record(run), step)
    number = checkpoint.domain_number(domain)
    if checkpoint.note:
        print_message(checkpoint.note)
    begin = encoded(checkpoint, prompt)
    made = list(
        continued(
            checkpoint,
            begin,
            number=tokens,
            temperature=temperature,
            top_k=top_k,
            seed=seed,
            domain=number,
        )
    )
    text = prompt + decoded(checkpoint, made)
    if as_json:
        print_json({"prompt": prompt, "text": text, "tokens": len(made)})
        return
    console = stdout_console()
    if not (experts and text and console.color_system):  # else its colours print the text
        print("\n".join(printable(line) for line in text.split("\n")))
    if experts and text:
        show_text(routed_text(checkpoint, [*begin[1:], *made], number), console)
